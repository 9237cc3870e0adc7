"""What a reader needs to repeat or judge a run: machine, versions, the weights' identity."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from mllm_tailor import __version__
from mllm_tailor.core.device import describe_machine

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "llguidance",
    "pillow",
    "numpy",
)


def describe_environment(identity: dict[str, Any]) -> dict[str, Any]:
    """Plain values for environment.json; no user name, host name or path."""
    return {
        "mllm_tailor": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": describe_machine(),
        "model": {key: value for key, value in identity.items() if key != "folder"},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
