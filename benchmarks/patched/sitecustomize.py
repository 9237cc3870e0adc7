"""Runs first in every process vLLM starts, also in those it starts by itself: see trainers/patch_imports.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "trainers"))
import patch_imports  # noqa: F401
