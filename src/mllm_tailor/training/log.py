"""What a training says: a progress bar, `log.jsonl`, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate.tracking import TensorBoardTracker

from mllm_tailor.core.io import append_jsonl, human_bytes, write_atomic
from mllm_tailor.core.progress import make_progress
from mllm_tailor.training.state import Progress


class TrainingLog:
    """Rows of one training; those a resumed training will write again are removed first."""

    def __init__(self, folder: Path, name: str, steps: int, progress: Progress) -> None:
        self.file = folder / "log.jsonl"
        done = progress.step
        keep_rows(self.file, done, progress.evaluated_step or 0)
        self.board = TensorBoardTracker(name, logging_dir=str(folder / "tensorboard"), purge_step=done + 1)
        self.bar = make_progress("Training", steps, done)

    def __enter__(self) -> TrainingLog:
        self.board.start()
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        self.board.finish()

    def step(self, row: Mapping[str, Any]) -> None:
        """One optimizer step."""
        append_jsonl(self.file, row)
        numbers = {f"train/{key}": value for key, value in row.items() if isinstance(value, (int, float))}
        self.board.log(numbers, step=row["step"])
        note = f"loss {row['loss']:.3f}  {row['samples_per_second']:.2f} samples/s  {human_bytes(row['memory'])}"
        self.bar.update(row["step"], note)

    def dev(self, step: int, scores: Mapping[str, float]) -> None:
        """Scores on the dev part."""
        append_jsonl(self.file, {"step": step, "dev": dict(scores)})
        self.board.log({f"dev/{name}": value for name, value in scores.items()}, step=step)


class SilentLog:
    """What the other processes of a training write: nothing."""

    def __enter__(self) -> SilentLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def dev(self, step: int, scores: Mapping[str, float]) -> None:
        """Nothing."""


def keep_rows(file: Path, done: int, evaluated: int) -> None:
    """Drop the rows after step `done`, scores after step `evaluated`, and a last line cut off by a crash."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
            if line.endswith("\n") and row["step"] <= (evaluated if "dev" in row else done):
                kept.append(line)
        except ValueError:
            continue
    write_atomic(file, "".join(kept))
