"""The wheel and the source archive: complete, and the same bytes from the same sources."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def build(out: Path) -> dict[str, str]:
    """File name -> SHA-256 of what a build writes."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.iterdir()}


@pytest.mark.slow
def test_two_builds_give_the_same_bytes_and_the_wheel_holds_everything(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    first, second = build(tmp_path / "first"), build(tmp_path / "second")
    assert first == second and len(first) == 2
    (wheel,) = (tmp_path / "first").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    wanted = {name.removeprefix("src/") for name in tracked.stdout.splitlines()}
    assert wanted <= names, sorted(wanted - names)[:5]
    (archive,) = (tmp_path / "first").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        assert any(name.endswith("/tests/conftest.py") for name in tar.getnames())


def test_every_locked_package_has_hashes() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith(("#", " "))]
    assert pins and all("==" in pin and pin.endswith("\\") for pin in pins)
    assert sum(line.startswith("    --hash=sha256:") for line in lines) >= len(pins)


def test_torch_is_locked_by_version_alone() -> None:
    """A build of torch for CUDA needs packages that one for CPUs doesn't, so its lock has neither hash nor closure."""
    lines = (REPOSITORY / "requirements-torch.lock").read_text(encoding="utf-8").splitlines()
    (pin,) = [line for line in lines if not line.startswith("#")]
    assert re.fullmatch(r"torch==[\d.]+", pin)
    assert "\ntorch==" not in (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
