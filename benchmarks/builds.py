"""Builds of this package to run: the working tree, or an earlier commit unpacked into a folder."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from environments import ROOT


@dataclass(frozen=True)
class Side:
    """A build: its name and the folder that it lies in."""

    name: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """One thread, this build's modules, no network."""
        return os.environ | {
            "PYTHONPATH": str(self.folder / "src"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TAILOR_CACHE": str(self.folder / ".benchmarks" / "cache"),
        }

    def tailor(self, *arguments: object) -> list[str]:
        """The words that run the command line of this build."""
        return [sys.executable, "-m", "mllm_tailor.cli.main", *map(str, arguments)]


THIS_BUILD = Side("ours", ROOT)


def unpack(commit: str, folder: Path) -> Side:
    """The files of a commit, compiled, so that it does not compile on the clock.

    Raises:
        RuntimeError: with git's words, when it has no such commit.
    """
    done = subprocess.run(["git", "archive", commit, "src", "benchmarks", "recipes"], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{commit} cannot be unpacked: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        tar.extractall(folder, filter="data")
    side = Side("base", folder)
    compile_modules(side)
    return side


def compile_modules(side: Side) -> None:
    """Byte code of every module of a side."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(side.folder / "src")], check=False)


def git(*words: str) -> str:
    """What git answers in this repository."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
