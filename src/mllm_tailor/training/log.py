"""The log of a training: `log.jsonl`, TensorBoard, and a progress display."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mllm_tailor.core.io import human_bytes
from mllm_tailor.core.progress import make_progress
from mllm_tailor.core.summed_rows import append_row, intact_lines, keep_lines
from mllm_tailor.training.state import Progress

logger = logging.getLogger(__name__)


class TrainingLog:
    """Rows of a training; those that a resumed training will write again are removed first."""

    def __init__(self, folder: Path, steps: int, progress: Progress) -> None:
        self.file = folder / "log.jsonl"
        keep_rows(self.file, progress.step, progress.evaluated_step or 0)
        self.board = _open_tensorboard(folder / "tensorboard", progress.step + 1)
        self.display = make_progress("Training", steps, progress.step)

    def __enter__(self) -> TrainingLog:
        self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.stop()
        if self.board is not None:
            self.board.close()

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
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)
            self.board.flush()  # a killed process loses nothing that its checkpoint has


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


def _open_tensorboard(folder: Path, first_step: int) -> Any | None:
    """A writer that hides earlier events from `first_step` on; None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed; `pip install 'mllm-tailor[tensorboard]'` adds its event files")
        return None
    return SummaryWriter(str(folder), purge_step=first_step)


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
