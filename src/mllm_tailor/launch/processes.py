"""The processes of one run on this machine, started by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys

from mllm_tailor.core.errors import RunError
from mllm_tailor.launch.plan import LaunchPlan


def run_by_torchrun(plan: LaunchPlan, meeting: str | None = None) -> None:
    """Start this node's processes and wait for them; `meeting` is host:port of the first of several nodes.

    Raises:
        RunError: when they failed; what was wrong they have printed.
    """
    if plan.nodes > 1 and meeting is None:
        raise RunError(
            f"{plan.nodes} nodes: name where they meet, such as --meet first-node:29500, and start the same command on "
            "each"
        )
    where = ["--standalone"] if meeting is None else ["--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}"]
    words = [sys.executable, *plan.torchrun_words(*where, f"--rdzv-id={plan.label}")[1:]]
    environment = {"OMP_NUM_THREADS": str(plan.threads)} | os.environ  # torchrun gives one thread unless told
    done = subprocess.run(words, env=environment)
    if done.returncode:
        raise RunError(
            f"torchrun ended with status {done.returncode} after {plan.restarts} restarts — its messages are above; "
            "the same command continues from the last checkpoint"
        )
