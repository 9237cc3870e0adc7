"""A batch script for Slurm: one torchrun on every node."""

from __future__ import annotations

import shlex

from mllm_tailor.launch.plan import PORT, LaunchPlan, quoted


def sbatch_script(plan: LaunchPlan) -> str:
    """The script. A requeued job continues the run from its last checkpoint."""
    options = {
        "job-name": plan.label,
        "nodes": str(plan.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(plan.cpus),
        "mem": f"{plan.memory}G",
        "time": f"{plan.hours}:00:00",
        "chdir": str(plan.folder),
        "output": f"{plan.label}-%j.log",
    }
    if plan.gpus:
        options["gpus-per-node"] = str(plan.gpus)
    head = ["#!/bin/bash", *(f"#SBATCH --{name}={shlex.quote(value)}" for name, value in options.items())]
    variables = ("SLURM_JOB_ID", "head")
    command = quoted(
        plan.torchrun_words("--rdzv-backend=c10d", "--rdzv-id=$SLURM_JOB_ID", f"--rdzv-endpoint=$head:{PORT}"),
        variables=variables,
    )
    return "\n".join(
        [
            *head,
            "#SBATCH --requeue",
            "#SBATCH --open-mode=append",
            "set -euo pipefail",
            f"export OMP_NUM_THREADS={plan.threads}",
            # Not `head -n 1`, which ends before scontrol does: with pipefail that would end the job.
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)',
            f"srun --cpus-per-task={plan.cpus} --kill-on-bad-exit=1 {command}",  # srun does not inherit it
            "",
        ]
    )
