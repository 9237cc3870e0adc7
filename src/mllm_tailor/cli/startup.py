"""Loads the modules of a command without searching for garbage meanwhile.

Importing torch and transformers makes a million objects that stay. The garbage collector goes through all of them again
and again as they grow, which costs a tenth of the CPU time of a start.
"""

from __future__ import annotations

import gc
from importlib import import_module


def import_at_start(module: str) -> None:
    """Import what does a command's work; then collection begins, of what is made from here on.

    In a process whose entry is `cli.main` collection is off until then. Elsewhere, as in tests, nothing changes.
    """
    import_module(module)
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
