"""A task for SkyPilot: machines of a cloud or cluster, one torchrun on each."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.launch.plan import PORT, LaunchPlan, quoted

VARIABLES = ("SKYPILOT_NODE_RANK", "head")


def sky_task(plan: LaunchPlan) -> str:
    """The task as YAML.

    Raises:
        RecipeError: for GPUs of no kind, or several nodes without shared storage.
    """
    if plan.gpus and not plan.accelerator:
        raise RecipeError("SkyPilot asks for a kind of GPU — name it: --accelerator H100")
    if plan.nodes > 1 and not plan.volume:
        raise RecipeError(
            f"{plan.nodes} nodes need shared storage for the recipe, its data and the run — name a volume of "
            f"SkyPilot with --volume; it is mounted at {plan.folder}"
        )
    resources: dict[str, Any] = {"cpus": f"{plan.cpus}+", "memory": f"{plan.memory}+"}
    if plan.gpus:
        resources["accelerators"] = f"{plan.accelerator}:{plan.gpus}"
    if plan.image:
        resources["image_id"] = f"docker:{plan.image}"
    meeting = ("--node-rank=$SKYPILOT_NODE_RANK", "--master-addr=$head", f"--master-port={PORT}")
    lines = [
        "set -euo pipefail",
        f"cd {shlex.quote(str(plan.folder))}" if plan.volume else "",
        f"export OMP_NUM_THREADS={plan.threads}",
        'head=$(echo "$SKYPILOT_NODE_IPS" | sed -n 1p)',
        quoted(plan.torchrun_words(*meeting), variables=VARIABLES),
    ]
    task: dict[str, Any] = {
        "name": plan.label,
        "num_nodes": plan.nodes,
        "resources": resources,
        **({"volumes": {str(plan.folder): plan.volume}} if plan.volume else {"workdir": "."}),
        **({} if plan.image else {"setup": "pip install mllm-tailor"}),
        "run": "\n".join(filter(None, lines)) + "\n",
    }
    return yaml.safe_dump(task, sort_keys=False, width=1000)
