"""Numbers of a training reach every tracker; those of real ones are read back by benchmarks/trackers.py."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mllm_tailor.core.errors import RunError
from mllm_tailor.training import trackers
from mllm_tailor.training.log import TrainingLog
from mllm_tailor.training.state import Progress

ROW = {"step": 1, "loss": 0.5, "samples_per_second": 2.0, "memory": 1, "seconds_left": 1.0}


class Kept:
    def __init__(self, folder: Path) -> None:
        self.folder, self.logged, self.closed = folder, [], False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.logged.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_steps_and_scores_reach_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "OPENERS", {"mlflow": Kept})
    monkeypatch.setattr(trackers, "_tensorboard", lambda folder, step: [])
    with TrainingLog(tmp_path, 2, Progress(), ["mlflow"]) as log:
        log.step(ROW)
        log.dev(1, {"fuzzy": 50.0})
    (kept,) = log.trackers
    assert isinstance(kept, Kept) and kept.folder == tmp_path and kept.closed
    step, scores = kept.logged
    assert step[0] == 1 and step[1]["train/loss"] == 0.5
    assert scores == (1, {"dev/fuzzy": 50.0})


@pytest.mark.parametrize("name", sorted(trackers.OPENERS))
def test_a_missing_tracker_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError, match=rf"train\.trackers: {name}: needs {name} — pip install 'mllm-tailor\[{name}\]'"):
        trackers.open_trackers([name], tmp_path, 1)
