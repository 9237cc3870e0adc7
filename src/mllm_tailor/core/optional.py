"""Libraries that only some uses need, installed as extras of this package."""

from __future__ import annotations

import importlib
from typing import Any

from mllm_tailor.core.errors import DataError, TailorError


def need(module: str, extra: str, what: str, error: type[TailorError] = DataError) -> Any:
    """Import the optional library `module`; `what` names the file or work that needs it.

    Raises:
        error: when it is not installed; the message states the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise error(f"{what}: needs {module.partition('.')[0]} — pip install 'mllm-tailor[{extra}]'") from None
