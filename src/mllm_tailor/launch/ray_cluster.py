"""The way to a Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import cache_folder
from mllm_tailor.core.optional import need

Here = tuple[str, str]  # the folder of the command, and that of its cache
OBJECT_STORE = 200 << 20  # bytes on this machine: what passes between tasks is small


def connect(address: str | None = None) -> Any:
    """Ray, connected to the cluster at `address` or RAY_ADDRESS; without either, started on this machine.

    A cluster that this process is connected to already is used as it is.

    Raises:
        RunError: when Ray is not installed, or the cluster cannot be reached.
    """
    ray = need("ray", "ray", "--on ray", RunError)
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, configure_logging=False)
        else:
            ray.init(
                address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, configure_logging=False
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(f"Ray at {address or 'this machine'}: {error} — check --address and `ray status`") from error
    return ray


def device_resources(ray: Any) -> dict[str, float]:
    """What one piece of work takes: a GPU where the cluster has any, otherwise a CPU."""
    return {"num_cpus": 1, "num_gpus": 1 if ray.cluster_resources().get("GPU") else 0}


def enter(place: Here) -> None:
    """In a worker process: relative paths begin where the command was started, and copies of files lie alike."""
    folder, cache = place
    os.environ["TAILOR_CACHE"] = cache
    try:
        os.chdir(folder)
    except OSError as error:
        raise RunError(
            f"{folder}: not on this node ({error.strerror}) — start the command from a folder on storage that all "
            "nodes reach"
        ) from error


def here() -> Here:
    """Where the command was started, for `enter`."""
    return str(Path.cwd()), str(cache_folder().absolute())
