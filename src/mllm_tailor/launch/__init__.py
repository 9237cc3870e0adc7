"""Runs on engines beyond this process: torchrun, Ray, Slurm, KubeRay, SkyPilot. None is imported unless asked for."""
