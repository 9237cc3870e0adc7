"""What is launched, and on how many processes of how many nodes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mllm_tailor.core.errors import RecipeError

PORT = 29500  # where the processes of several nodes meet
MODULE = "mllm_tailor.cli.main"


@dataclass(frozen=True)
class LaunchPlan:
    """One recipe on several processes. Recipe, data and run folder lie on storage that every node reaches."""

    name: str
    recipe: str  # its file, seen from `folder`
    overrides: Sequence[str]
    folder: PurePosixPath  # on the nodes, where the recipe's paths begin
    nodes: int = 1
    per_node: int = 1  # processes
    gpus: int = 0  # of a node
    cpus: int = 8  # of a node
    memory: int = 32  # GiB of a node
    restarts: int = 3
    hours: int = 24
    image: str | None = None  # of a container that has this package
    volume: str | None = None  # shared storage, mounted at `folder`
    accelerator: str | None = None  # kind of GPU, in SkyPilot's words
    exclude_faulty: bool = False

    def __post_init__(self) -> None:
        if self.gpus and self.per_node > self.gpus:
            raise RecipeError(
                f"{self.per_node} processes a node share {self.gpus} GPUs — each needs its own: at most "
                f"--per-node {self.gpus}"
            )

    @property
    def processes(self) -> int:
        """In all."""
        return self.nodes * self.per_node

    @property
    def threads(self) -> int:
        """Of a process."""
        return max(1, self.cpus // self.per_node)

    @property
    def label(self) -> str:
        """The name as DNS labels are written, which Kubernetes and SkyPilot ask for."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:40].strip("-")
        return words if words[:1].isalpha() else f"run-{words}".rstrip("-")

    def run_words(self) -> list[str]:
        """`run RECIPE KEY=VALUE...`."""
        return ["run", self.recipe, *self.overrides, *(["--exclude-faulty"] if self.exclude_faulty else [])]

    def torchrun_words(self, *meeting: str) -> list[str]:
        """The command that starts this node's processes, which meet the others as `meeting` states."""
        words = ["-m", "torch.distributed.run", f"--nnodes={self.nodes}", f"--nproc-per-node={self.per_node}"]
        return ["python", *words, f"--max-restarts={self.restarts}", *meeting, "-m", MODULE, *self.run_words()]


def quoted(words: Sequence[str], *, variables: Sequence[str] = ()) -> str:
    """A line for the shell. Words that hold one of `variables` are in double quotes, so that it is filled in."""
    return " ".join(
        f'"{word}"' if any(f"${name}" in word for name in variables) else shlex.quote(word) for word in words
    )
