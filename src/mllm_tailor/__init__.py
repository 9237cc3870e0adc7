"""Make a multimodal LLM good at your own use case, and measure honestly how much better it became.

`import mllm_tailor as tailor`; the names below are the stable Python API (docs/python.md). They are loaded when they
are first used, so that importing the package is quick and changes nothing; their types are in `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "ModelError",
    "Prediction",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "TailorError",
    "__version__",
    "check",
    "load_run",
    "score",
    "tune",
]

_HOMES = {
    **dict.fromkeys(("Run", "check", "load_run", "score", "tune"), "mllm_tailor.api"),
    **dict.fromkeys(("DataError", "ModelError", "RecipeError", "RunError", "TailorError"), "mllm_tailor.core.errors"),
    "Prediction": "mllm_tailor.core.sample",
    "Recipe": "mllm_tailor.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
