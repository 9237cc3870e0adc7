"""Which base an adapter was made on: written beside it, and compared before it is used."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import read_json, write_json

logger = logging.getLogger(__name__)

FILE = "tailor.json"


def describe_base(model: Any) -> dict[str, Any]:
    """What an adapter depends on: weights, number format, tiles, frames, template, system text."""
    template = model.processor.chat_template or model.tokenizer.chat_template or ""
    return {
        "weights_sha256": model.identity["weights_sha256"],
        "config_sha256": model.identity["config_sha256"],
        "path": model.identity["path"],
        "revision": model.identity["revision"],
        "quantize": model.quantize,
        "dtype": str(model.dtype).removeprefix("torch."),
        "tiles": model.tiles.model_dump(),
        "frames": model.frames,
        "trim": model.trim,
        "system": model.system,
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
    }


def write_fit(folder: Path, model: Any, contents: dict[str, Any]) -> None:
    """Write `tailor.json`: the base and what the folder holds."""
    write_json(folder / FILE, {"format": 1, "base": describe_base(model), **contents})


def read_fit(folder: Path, model: Any, *, unquantised: bool = False) -> dict[str, Any]:
    """The contents of `tailor.json`, once the model has proved to be the base the adapter was made on.

    `unquantised` allows a packed adapter on the unpacked base, as the published receipt recipe does it.

    Raises:
        ModelError: saying what differs and how to open the right base.
    """
    try:
        noted = read_json(folder / FILE)
    except FileNotFoundError:
        raise ModelError(f"{folder}: not an adapter of ours (no {FILE}) — name a finished run's adapter") from None
    except DataError as error:
        raise ModelError(str(error)) from None
    made_on, here = noted["base"], describe_base(model)
    for key, what in (("weights_sha256", "weights"), ("config_sha256", "configuration")):
        if made_on[key] != here[key]:
            raise ModelError(
                f"{folder}: made on {made_on['path']}, whose {what} differ from those of {here['path']} — "
                f"open it on {made_on['path']} (revision {made_on['revision'] or 'as it was'})"
            )
    if made_on["quantize"] != here["quantize"] and not (unquantised and here["quantize"] is None):
        raise ModelError(
            f"{folder}: made on a base with quantize={made_on['quantize']}, used on one with {here['quantize']} — "
            f"open the base with quantize={made_on['quantize']}"
        )
    for key in ("tiles", "frames", "trim", "system", "template_sha256"):
        if made_on.get(key, here[key]) != here[key]:
            logger.warning("%s: trained with another `%s` than in use here", folder, key.removesuffix("_sha256"))
    return dict(noted)
