"""`tailor convert`: an original InternVL checkpoint in transformers' layout."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.commands.console import show
from mllm_tailor.models.convert import convert


def convert_checkpoint(source: str, out: Path, revision: str | None) -> None:
    """Convert a folder or hub checkpoint into the folder `out`."""
    convert(source, out, revision)
    show(f"Converted model in {out}. Use it with model: {out}")
