"""A choice of the bad inputs and of the injected faults of benchmarks/, which run all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
RESULTS = BENCHMARKS / "results" / "bad_inputs.json"
LIGHT = ("label files", "odd files")  # which load no torch
ROOMS = ("data", "media", "tasks")  # that they need


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_choice_of_bad_inputs_ends_in_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bad_inputs import try_all
    from reliability.corpus import corpus, sample
    from reliability.forked import preload
    from reliability.workspace import write_inputs

    preload(ROOMS)
    write_inputs(tmp_path / "workspace")
    light = [named for named in corpus(tmp_path / "workspace", LIGHT) if "model" not in named.case.needs]
    results = try_all(sample(light, 20), tmp_path / "workspace", tmp_path)
    assert len(results) == 20
    assert not {name: result for name, result in results.items() if result[0] not in ("accepted", "refused")}
    assert sum(result[0] == "refused" for result in results.values()) > 5  # not all of it is accepted


def test_the_whole_corpus_was_tried() -> None:
    """The stored counts are of at least 700 inputs, none of which ended in anything but a message or a result."""
    kinds = [kind["outcomes"] for kind in json.loads(RESULTS.read_text())["kinds"].values()]
    assert sum(sum(outcomes.values()) for outcomes in kinds) >= 700
    assert all(set(outcomes) <= {"accepted", "refused"} for outcomes in kinds)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_injected_faults_lose_nothing() -> None:
    """Two kills of a run, which then ends with the bits of an undisturbed one."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, str(BENCHMARKS / "faults.py"), "--quick", "--only", "SIGKILL: one process"]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("2 injected") == 1
