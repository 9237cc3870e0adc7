"""Confidences by field of what is served, compared with those of the held-out split.

Replies are taken in windows of WINDOW. Each full window is compared once, field by field, at FALSE_ALARMS shared among
the fields (Bonferroni): if documents came as the held-out ones did, one window in 1 / FALSE_ALARMS would raise an
alarm. Windows do not overlap, so looking more often does not raise that rate.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import fingerprint, read_json, write_json
from mllm_tailor.core.sample import Prediction
from mllm_tailor.run.run_dir import RunFolder, read_predictions
from mllm_tailor.scoring.drift import LEVELS, Counts, Difference, compare_confidences, count_confidences
from mllm_tailor.serving.served import ServedModel

logger = logging.getLogger(__name__)

WINDOW = 200  # replies
FALSE_ALARMS = 0.01  # of windows
FEWEST = 20  # held-out values of a field below which it is not compared
KEPT = 100  # windows listed in the file


@dataclass
class FieldCounts:
    """Confidences of one field, by hundredths."""

    held_out: Counts
    window: Counts = field(default_factory=lambda: np.zeros(LEVELS, np.int64))
    total: Counts = field(default_factory=lambda: np.zeros(LEVELS, np.int64))
    last: Difference | None = None  # of the last full window
    left: bool = False  # whether that one differs from the held-out split


class DriftWatch:
    """Watches the confidences of one run's replies; kept in `drift.json` of the run folder."""

    def __init__(self, name: str, held_out: Mapping[str, Counts], file: Path | None, window: int = WINDOW) -> None:
        """`held_out` by field; `file` is continued where it is about the same confidences."""
        self.name, self.file, self.size = name, file, window
        self.fields = {name: FieldCounts(counts) for name, counts in held_out.items()}
        self.key = fingerprint(window, {name: counts.tolist() for name, counts in held_out.items()})
        self.replies = 0  # in the window
        self.windows: list[dict[str, Any]] = []
        self._continue()

    def add(self, prediction: Prediction) -> None:
        """Count a reply; a full window is compared."""
        known = {name: prediction.likelihood(name) for name in self.fields}
        for name, value in known.items():
            if value is not None:
                self.fields[name].window += count_confidences([value])
        self.replies += 1
        if self.replies >= self.size:
            self._close_window()
            self.save()

    def _close_window(self) -> None:
        compared = [counts for counts in self.fields.values() if counts.held_out.sum() >= FEWEST]
        level = FALSE_ALARMS / max(1, len(compared))
        row: dict[str, Any] = {"ended": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}", "fields": {}}
        for name, counts in self.fields.items():
            counts.last, counts.left = None, False
            if counts.held_out.sum() >= FEWEST and counts.window.sum():
                counts.last = compare_confidences(counts.held_out, counts.window)
                counts.left = counts.last.p < level
                row["fields"][name] = asdict(counts.last) | {"left": counts.left}
            if counts.left and counts.last is not None:
                logger.warning(
                    "%s: confidences of `%s` differ from the held-out split: mean %.2f of %d replies, %.2f there "
                    "(p = %.2g) — look at recent documents, and label some of them",
                    self.name,
                    name,
                    counts.last.mean,
                    counts.window.sum(),
                    counts.last.reference_mean,
                    counts.last.p,
                )
            counts.total += counts.window
            counts.window[:] = 0
        self.windows = [*self.windows, row][-KEPT:]
        self.replies = 0

    def save(self) -> None:
        """Write the file; a run folder that cannot be written to is named once and left as it is."""
        if self.file is None:
            return
        try:
            write_json(self.file, self.row())
        except OSError as error:
            logger.warning(
                "%s: cannot be written (%s); counts of confidences are lost with the server", self.file, error
            )
            self.file = None

    def row(self) -> dict[str, Any]:
        """Plain values for drift.json."""
        return {
            "key": self.key,
            "window": self.size,
            "false_alarms": FALSE_ALARMS,
            "replies_in_window": self.replies,
            "fields": {
                name: {
                    "held_out": counts.held_out.tolist(),
                    "served": (counts.total + counts.window).tolist(),
                    "window": counts.window.tolist(),
                    "left": counts.left,
                }
                for name, counts in self.fields.items()
            },
            "windows": self.windows,
        }

    def _continue(self) -> None:
        """Take over what an earlier server counted of the same run."""
        if self.file is None or not self.file.is_file():
            return
        try:
            row = read_json(self.file)
            if row["key"] != self.key:
                return
            for name, counts in self.fields.items():
                kept = row["fields"][name]
                counts.window = np.array(kept["window"], np.int64)
                counts.total = np.array(kept["served"], np.int64) - counts.window
                counts.left = bool(kept["left"])
            self.replies, self.windows = int(row["replies_in_window"]), list(row["windows"])
        except (DataError, KeyError, TypeError, ValueError):
            logger.warning("%s: damaged; confidences are counted anew", self.file)


def watch_drift(served: ServedModel) -> DriftWatch | None:
    """A watch over a run's tuned model; None where its held-out split was not read."""
    folder: RunFolder = served.folder
    if not served.tuned or not folder.reply_rows.is_file():
        return None
    try:
        replies = [served.calibration.apply(reply) for reply in read_predictions(folder.reply_rows)]
    except RunError as error:
        logger.warning("%s: confidences are not watched (%s)", served.name, error)
        return None
    held_out = {
        name: count_confidences(value for reply in replies if (value := reply.likelihood(name)) is not None)
        for name in served.task.field_names
    }
    return DriftWatch(served.name, held_out, folder.drift)
