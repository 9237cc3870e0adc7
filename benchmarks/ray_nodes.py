"""Ray clusters of several nodes inside this machine, for the benchmarks that need one.

Ray is no part of the development environment. Where it is missing, these benchmarks make one of their own that sees the
packages of this one, and start again in it.
"""

from __future__ import annotations

import importlib.util
import os
import site
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

RAY = "ray[train]==2.60.0"
HOME = Path(__file__).resolve().parent.parent / ".benchmarks" / "ray"
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or 127.0.0.1 becomes the machine's outer address
    "GLOO_SOCKET_IFNAME": "lo",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "300",  # 60 pass where other work is going on
    "RAY_worker_niceness": "0",  # of 15 workers start too late for Ray Train where other work is going on
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def in_ray_environment() -> None:
    """Return in a process that can import Ray, with the settings that it reads when it is loaded."""
    wanted = {name: value for name, value in ENVIRONMENT.items() if os.environ.get(name) != value}
    python = sys.executable
    if importlib.util.find_spec("ray") is None:
        python = str(_make())
    if wanted or python != sys.executable:
        os.environ.update(wanted)
        os.execv(python, [python, *sys.argv])


def _make() -> Path:
    python = HOME / "bin" / "python"
    if not (HOME / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        packages = next(HOME.glob("lib/python*/site-packages"))
        (packages / "project.pth").write_text("\n".join(site.getsitepackages()))
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", RAY], check=True)
        (HOME / ".ready").touch()
    return python


class Nodes:
    """A head without CPUs, and nodes with one CPU each."""

    def __init__(self, count: int) -> None:
        import ray
        from ray.cluster_utils import Cluster

        options = {"node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20}
        self._options = options
        self._cluster: Any = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **options}
        )
        self.nodes = [self._add() for _ in range(count)]
        ray.init(address=self._cluster.address)

    @property
    def address(self) -> str:
        """What --address takes."""
        return str(self._cluster.address)

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, **self._options)

    def kill(self, actor: str) -> None:
        """SIGKILL a node that runs such an actor, with all its processes. (Ray adds nodes in the main thread only.)"""
        at_work = [node for node in self.nodes if any(actor in words for words in _children(node))]
        self.nodes.remove(at_work[-1])
        self._cluster.remove_node(at_work[-1], allow_graceful=False)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def _children(node: Any) -> list[str]:
    """The command lines of a node's worker processes."""
    (raylet,) = node.all_processes["raylet"]
    return [" ".join(child.cmdline()) for child in psutil.Process(raylet.process.pid).children()]


@contextmanager
def ray_nodes(count: int) -> Iterator[Nodes]:
    """Nodes inside this machine, to which Ray is connected."""
    nodes = Nodes(count)
    try:
        yield nodes
    finally:
        nodes.close()
