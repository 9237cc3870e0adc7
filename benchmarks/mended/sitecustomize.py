"""Runs first in every process vLLM starts, also in those it starts by itself: see trainers/mend.py for what and why."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "trainers"))
import fix  # noqa: F401
