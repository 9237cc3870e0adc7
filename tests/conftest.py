"""Fixtures shared by all tests: where real data lies, and tiny models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TAILOR_DATA", REPOSITORY.parent / "shared" / "data"))


def real_data(name: str) -> Path:
    """A folder of real data, or a skip that says how to get it."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"real data {name!r} is not at {DATA}; set TAILOR_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def sroie() -> Path:
    """The 626 labelled SROIE receipts."""
    return real_data("sroie")
