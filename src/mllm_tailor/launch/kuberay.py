"""A RayJob for the KubeRay operator: a Ray cluster that runs one recipe and is taken down afterwards."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.launch.plan import LaunchPlan

KEPT_SECONDS = 3600  # that a finished job and its log stay


def ray_job(plan: LaunchPlan) -> str:
    """The job as YAML.

    Raises:
        RecipeError: without an image or shared storage.
    """
    if not plan.image or not plan.volume:
        raise RecipeError(
            "a RayJob needs --image (a container with `mllm-tailor[ray]`) and --volume (a PersistentVolumeClaim that "
            f"holds the recipe and its data, mounted at {plan.folder})"
        )
    launch = ["tailor", "launch", *plan.run_words()[1:], "--on", "ray", "--nodes", str(plan.nodes)]
    launch += ["--per-node", str(plan.per_node), "--gpus", str(plan.gpus), "--cpus", str(plan.cpus)]
    launch += ["--restarts", str(plan.restarts)]
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": plan.label},
        "spec": {
            "entrypoint": shlex.join(["bash", "-c", f"cd {shlex.quote(str(plan.folder))} && {shlex.join(launch)}"]),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "activeDeadlineSeconds": plan.hours * 3600,
            "rayClusterSpec": {
                "headGroupSpec": {
                    # The head only coordinates: a training on it would end with it.
                    "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
                    "template": _pod(plan, "head", cpus=1, memory=4, gpus=0),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": plan.nodes,
                        "minReplicas": plan.nodes,
                        "maxReplicas": plan.nodes,
                        "rayStartParams": {},
                        "template": _pod(plan, "worker", cpus=plan.cpus, memory=plan.memory, gpus=plan.gpus),
                    }
                ],
            },
        },
    }
    return yaml.safe_dump(job, sort_keys=False, width=1000)


def _pod(plan: LaunchPlan, role: str, *, cpus: int, memory: int, gpus: int) -> dict[str, Any]:
    resources: dict[str, Any] = {"cpu": str(cpus), "memory": f"{memory}Gi"}
    if gpus:
        resources["nvidia.com/gpu"] = str(gpus)
    container = {
        "name": f"ray-{role}",
        "image": plan.image,
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        "resources": {"requests": resources, "limits": dict(resources)},
        "volumeMounts": [{"name": "shared", "mountPath": str(plan.folder)}],
    }
    volume = {"name": "shared", "persistentVolumeClaim": {"claimName": plan.volume}}
    return {"spec": {"containers": [container], "volumes": [volume]}}
