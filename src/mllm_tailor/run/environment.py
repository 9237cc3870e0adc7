"""What a reader needs to repeat or judge a run: machine, versions, the base model's identity."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mllm_tailor import __version__
from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import read_json

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
PARTS = {
    "weights_sha256": "weights",
    "config_sha256": "configuration",
    "processor_sha256": "tokenizer, processor or chat template",
}


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


def check_same_base(file: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to continue a run on another base model than the one that `file` (environment.json) describes.

    Raises:
        RunError: naming what differs and the ways forward.
    """
    before = _recorded_model(file)
    changed = [what for key, what in PARTS.items() if key in before and before[key] != identity[key]]
    if changed:
        raise RunError(
            f"{identity['path']}: its {' and '.join(changed)} changed after the run had used them ({file}) — "
            "put the model back as it was, or pass --fresh to begin anew"
        )


def read_environment(file: Path) -> dict[str, Any]:
    """What environment.json states.

    Raises:
        RunError: for a file of another shape.
    """
    stated = read_json(file)
    if not isinstance(stated, dict):
        raise RunError(f"{file}: should be a JSON object — the file is damaged: begin anew (--fresh)")
    return stated


def _recorded_model(file: Path) -> Mapping[str, Any]:
    try:
        model = read_json(file)["model"]
    except (DataError, KeyError, TypeError):  # absent, or unfinished and damaged: it is written again
        return {}
    return model if isinstance(model, Mapping) else {}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
