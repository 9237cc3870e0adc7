"""The jobs that faults are injected into, each with what it leaves behind when nothing disturbs it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from reliability.forked import Child, Ended, start
from reliability.outcome import outcome
from reliability.workspace import copy_workspace, write_data, write_recipe

STAGES = [{"name": "a", "train": {"epochs": 1}}, {"name": "b", "method": {"name": "lora", "rank": 3}}]
REWARD = {"group_size": 2, "max_new_tokens": 6}
HANG = 1800.0  # seconds after which a command counts as hanging, on a machine with other work too


def _fork_workers() -> None:
    """Fork worker processes instead of starting new interpreters, which would import for ten seconds each."""
    from torch.multiprocessing.spawn import start_processes

    from mllm_tailor.run import launcher

    launcher.spawn = functools.partial(start_processes, start_method="fork")


@dataclass(frozen=True)
class Job:
    """One command over a copy of the workspace."""

    name: str
    words: tuple[str, ...] = ("run", "r.yaml")
    result: str = "runs/g"  # the folder or file that is compared
    recipe: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ("d", "model")
    before: Callable[[], object] | None = None

    def prepare(self, workspace: Path, folder: Path) -> None:
        """A fresh folder for it."""
        shutil.rmtree(folder, ignore_errors=True)
        copy_workspace(workspace, folder, *self.needs)
        write_recipe(folder / "r.yaml", **self.recipe)

    def start(self, folder: Path, **options: Any) -> Child:
        """Begin, or continue."""
        return start(self.words, folder, before=self.before, **options)

    def run(self, folder: Path, **options: Any) -> Ended:
        """From where it stands to its end."""
        return self.start(folder, **options).wait(HANG)

    def outcome(self, folder: Path) -> dict[str, Any]:
        """What it left behind."""
        path = folder / self.result
        if path.is_file():
            hidden = [file.name for file in path.parent.glob(f".{path.name}*")]
            return outcome_of_file(path) | {"left over": hidden}
        return outcome(path)


def outcome_of_file(path: Path) -> dict[str, Any]:
    """The same of one file."""
    return {path.name: outcome(path.parent).get(path.name)}


JOBS = {
    job.name: job
    for job in (
        Job("one process", recipe={"data": {"dev": 0.2}, "train": {"evaluate_every": 0.5}}),
        Job("CPU worker processes", recipe={"train": {"processes": 2}}, before=_fork_workers),
        Job("stages", recipe={"stages": STAGES}),
        Job("preference objective (DPO)", recipe={"train": {"prefer": {}, "epochs": 2}}),
        Job("reward objective (GRPO)", recipe={"train": {"reward": REWARD, "epochs": 1}}),
        Job("predict", ("predict", "runs/g", "d/images", "--out", "o.jsonl"), "o.jsonl", needs=("d", "model", "runs")),
    )
}


def cpu_seconds(child: Child) -> float:
    """CPU seconds of the command itself so far, which do not depend on other work on the machine."""
    try:
        times = psutil.Process(child.process).cpu_times()
    except psutil.NoSuchProcess:
        return float("inf")
    return float(times.user + times.system)


def more_data(folder: Path) -> None:
    """A workspace whose data take longer to predict."""
    shutil.rmtree(folder / "d", ignore_errors=True)
    write_data(folder / "d", samples=16)
