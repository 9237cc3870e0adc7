"""Loads bitsandbytes without torch's compiler, in processes of the command line only.

bitsandbytes wraps a few functions in `torch.compile` that stand in where a device has no kernel, and keeps them plain
where that fails. PEFT imports it whether or not anything is quantised, and the compiler alone costs 42 MiB and most of
a second at every start. The library itself leaves `torch.compile` alone: it may be imported by other programs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class UncompiledFinder(MetaPathFinder):
    """Finds one library and has it executed while `torch.compile` is absent."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The library's own spec with another loader; None for all other modules, and where it is not installed."""
        if fullname != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _UncompiledLoader(spec.loader)
        return spec


class _UncompiledLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch

        spec = module.__spec__
        if spec is not None:
            spec.loader = module.__loader__ = self.loader
        compiler, torch.compile = torch.compile, None  # type: ignore[assignment]
        try:
            self.loader.exec_module(module)
        finally:
            torch.compile = compiler
