"""Lets packages import beside CPU torch whose compiled operators were built for another torch.

PyPI's torchvision and torchaudio do not load next to a CPU build of torch, yet the peers import them at the top. Only
operators no trainer calls are declared here; where the packages load by themselves nothing is done.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import types


def patch_torchvision() -> None:
    """Declare the operators torchvision registers shapes for, until it imports."""
    import torch

    if importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(8):
        try:
            import torchvision  # noqa: F401

            break
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library.define(f"{missing[1]}(Tensor a, Tensor b, float c) -> Tensor")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    torch._kept_for_torchvision = library  # type: ignore[attr-defined]


def patch_torchaudio() -> None:
    """An empty torchaudio where the real one cannot load: no recordings are learned from here."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        empty = types.ModuleType("torchaudio")
        empty.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        empty.__version__ = "0"  # type: ignore[attr-defined]
        sys.modules["torchaudio"] = empty


patch_torchvision()
