"""A choice of the bad inputs and of the injected faults of benchmarks/, which run all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
LIGHT = ("label files", "odd files", "media", "predictions")  # which open no model


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_sixty_bad_inputs_end_in_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bad_inputs import try_all
    from reliability.corpus import corpus, sample
    from reliability.forked import preload
    from reliability.workspace import make_workspace

    preload()
    make_workspace(tmp_path / "workspace", with_run=False)
    cases = corpus(tmp_path / "workspace", LIGHT)
    assert len(cases) >= 700
    light = [case for case in cases if "model" not in case.case.needs]
    results = try_all(sample(light, 60), tmp_path / "workspace", tmp_path)
    assert len(results) == 60
    assert not {name: result for name, result in results.items() if result[0] not in ("accepted", "refused")}
    assert sum(result[0] == "refused" for result in results.values()) > 10  # not all of it is accepted


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
