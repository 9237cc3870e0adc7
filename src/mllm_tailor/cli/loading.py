"""Loads a few modules of other libraries with less work, in processes of the command line only.

The package itself leaves these libraries alone: it may be imported by other programs. Each entry of `AROUND` is a
context in which a module is executed; what the module then offers is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Around = Callable[[ModuleType], AbstractContextManager[None]]


@contextmanager
def without_compiler(_: ModuleType) -> Iterator[None]:
    """Execute a module while `torch.compile` is absent.

    bitsandbytes wraps a few functions in it that stand in where a device has no kernel, and keeps them plain where that
    fails. PEFT imports it whether or not anything is quantised; the compiler alone costs 42 MiB and most of a second.
    """
    import torch

    compiler, torch.compile = torch.compile, None  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


@contextmanager
def without_scipy(module: ModuleType) -> Iterator[None]:
    """Execute a module of transformers' losses as if SciPy were absent; its one function is imported when called.

    Every model class imports the losses of object detectors, and these `scipy.optimize`.
    """
    import transformers.utils as utils

    available, utils.is_scipy_available = utils.is_scipy_available, lambda: False
    try:
        yield
    finally:
        utils.is_scipy_available = available
    vars(module).update(is_scipy_available=available, linear_sum_assignment=linear_sum_assignment)


def linear_sum_assignment(*arguments: Any, **options: Any) -> Any:
    """SciPy's function, imported when it is called."""
    import scipy

    return scipy.optimize.linear_sum_assignment(*arguments, **options)


@contextmanager
def with_kept_scan(module: ModuleType) -> Iterator[None]:
    """Have transformers read the names in its model files from a cache.

    It searches 2,600 files for them, twice, at each start.
    """
    yield
    from mllm_tailor.cli.import_scan import keep_scan

    if scan := getattr(module, "create_import_structure_from_path", None):
        module.create_import_structure_from_path = keep_scan(scan)  # type: ignore[attr-defined]


DETECTION_LOSSES = ("deformable_detr", "for_object_detection", "grounding_dino", "lw_detr", "rf_detr", "rt_detr")
AROUND: Mapping[str, Around] = {
    "bitsandbytes": without_compiler,
    "transformers.utils.import_utils": with_kept_scan,
} | {f"transformers.loss.loss_{name}": without_scipy for name in DETECTION_LOSSES}


class LoadingFinder(MetaPathFinder):
    """Finds the modules of a table and has each executed in its context."""

    def __init__(self, around: Mapping[str, Around] = AROUND) -> None:
        self.around = around

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec with another loader; None for all other modules, and where it is not installed."""
        if fullname not in self.around:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoaderInContext(spec.loader, self.around[fullname])
        return spec


class _LoaderInContext(Loader):
    def __init__(self, loader: Loader, around: Around) -> None:
        self.loader, self.around = loader, around

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = module.__loader__ = self.loader
        with self.around(module):
            self.loader.exec_module(module)
