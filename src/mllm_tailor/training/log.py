"""The log of a training: `log.jsonl`, trackers, and a progress display."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mllm_tailor.core.io import human_bytes
from mllm_tailor.core.progress import make_progress
from mllm_tailor.core.summed_rows import append_row, intact_lines, keep_lines
from mllm_tailor.training.state import Progress
from mllm_tailor.training.trackers import open_trackers

logger = logging.getLogger(__name__)


class TrainingLog:
    """Rows of a training; those that a resumed training will write again are removed first."""

    def __init__(self, folder: Path, steps: int, progress: Progress, trackers: Sequence[str] = ()) -> None:
        self.file = folder / "log.jsonl"
        keep_rows(self.file, progress.step, progress.evaluated_step or 0)
        self.trackers = open_trackers(trackers, folder, progress.step + 1)
        self.display = make_progress("Training", steps, progress.step)

    def __enter__(self) -> TrainingLog:
        self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.stop()
        for tracker in self.trackers:
            tracker.close()

    def step(self, row: Mapping[str, Any]) -> None:
        """One optimizer step."""
        append_row(self.file, row)
        self._scalars(
            "train", {key: value for key, value in row.items() if isinstance(value, (int, float))}, row["step"]
        )
        note = f"loss {row['loss']:.3f}  {row['samples_per_second']:.2f} samples/s  {human_bytes(row['memory'])}"
        self.display.update(row["step"], note, row["seconds_left"])

    def dev(self, step: int, scores: Mapping[str, float]) -> None:
        """Scores on the dev split."""
        append_row(self.file, {"step": step, "dev": dict(scores)})
        self._scalars("dev", scores, step)

    def _scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(step, {f"{group}/{name}": value for name, value in values.items()})


class SilentLog:
    """The log of every process but the first: nothing."""

    def __enter__(self) -> SilentLog:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def step(self, row: Mapping[str, Any]) -> None:
        """Write nothing."""

    def dev(self, step: int, scores: Mapping[str, float]) -> None:
        """Write nothing."""


def keep_rows(file: Path, step: int, evaluated_step: int) -> None:
    """Drop the rows after `step`, scores after `evaluated_step`, and what was cut off by a crash or damaged since."""
    if not file.exists():
        return
    kept = []
    for number, line in enumerate(intact_lines(file), 1):
        try:
            row = json.loads(line)
            if row["step"] <= (evaluated_step if "dev" in row else step):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            logger.warning("%s:%d: not a row of a training log; it is dropped", file, number)
    keep_lines(file, kept)
