"""Base-model fingerprint and file sums saved with an adapter (`tailor.json`), checked before it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import read_json, sha256, write_json
from mllm_tailor.core.model import TunableModel

logger = logging.getLogger(__name__)

FILE = "tailor.json"
FORMAT = 2
BASE = ("weights_sha256", "config_sha256", "processor_sha256", "path", "revision")  # of a model's identity


def describe_base(model: TunableModel) -> dict[str, Any]:
    """What an adapter depends on: the files, dtype and input settings of the base model."""
    return {
        **{name: model.identity[name] for name in BASE},
        "quantize": model.quantize,
        "dtype": str(model.dtype).removeprefix("torch."),
        **model.input_settings(),
    }


def write_metadata(folder: Path, base: Mapping[str, Any], contents: Mapping[str, Any]) -> None:
    """Write `tailor.json`: the base, the contents of the folder and the checksums of its files, which must exist."""
    files = [file for pattern in ("*.safetensors", "adapter_config.json") for file in folder.rglob(pattern)]
    sums = {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(files)}
    write_json(folder / FILE, {"format": FORMAT, "base": dict(base), **contents, "files": sums})


def read_metadata(folder: Path) -> dict[str, Any]:
    """The contents of `tailor.json`, after the files of the folder are checked against its checksums.

    Raises:
        ModelError: naming the file that is missing, damaged or changed.
    """
    file = folder / FILE
    try:
        metadata = read_json(file)
    except FileNotFoundError:
        raise ModelError(
            f"{folder}: no {FILE}, so not an adapter of mllm-tailor — name the adapter folder of a run"
        ) from None
    except DataError as error:
        raise ModelError(str(error)) from None
    expected = {"base": dict, "adapters": dict, "weights": bool, "files": dict}
    if not isinstance(metadata, dict) or any(type(metadata.get(key)) is not kind for key, kind in expected.items()):
        raise ModelError(f"{file}: damaged, or of an earlier version — train again")
    for name, expected_sum in metadata["files"].items():
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: missing — copy the adapter again, or train again")
        if sha256(folder / name) != expected_sum:
            raise ModelError(f"{folder / name}: changed since it was written — copy the adapter again, or train again")
    return dict(metadata)


def check_base(folder: Path, trained_on: Mapping[str, Any], model: TunableModel, *, unquantised: bool = False) -> None:
    """Refuse an adapter on a base other than the one it was trained on; warn where only input settings differ.

    `unquantised` allows an adapter of a quantised base on the same base without quantisation.

    Raises:
        ModelError: naming what differs and how to load the right base.
    """
    here = describe_base(model)
    for key, what in (("weights_sha256", "weights"), ("config_sha256", "configuration")):
        if trained_on.get(key) != here[key]:
            raise ModelError(
                f"{folder}: trained on {trained_on.get('path')}, whose {what} differ from those of {here['path']} — "
                f"load it on {trained_on.get('path')} (revision {trained_on.get('revision') or 'as it was'})"
            )
    quantize = trained_on.get("quantize")
    if quantize != here["quantize"] and not (unquantised and here["quantize"] is None):
        raise ModelError(
            f"{folder}: trained on a base with quantize={quantize}, used on a base with {here['quantize']} — "
            f"load the base with quantize={quantize}"
        )
    for key in ("processor_sha256", *model.input_settings()):
        if trained_on.get(key, here[key]) != here[key]:
            logger.warning(
                "%s: trained with another `%s` than the current model has", folder, key.removesuffix("_sha256")
            )
