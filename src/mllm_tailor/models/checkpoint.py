"""Inspect the files of a checkpoint before anything is loaded: no code, no pickle, nothing missing or truncated."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.progress import console

DUPLICATES = "consolidated*.safetensors"  # the same weights once more, under Mistral's own names
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ORIGINAL = "internvl_chat"  # model type of InternVL in its first layout, whose code is replaced by a conversion
INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100 * 2**20  # the format's own limit for the header, in bytes


@dataclass(frozen=True)
class Checkpoint:
    """Files of a checkpoint that can be opened: its folder, configuration and the shape of every weight."""

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    path: str
    revision: str | None

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_checkpoint(folder: Path, path: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint in a folder; `path` is the name it was asked for by.

    Raises:
        ModelError: naming the file and what to do, for anything missing, damaged or unsafe.
    """
    try:
        config = read_json(folder / "config.json")
    except FileNotFoundError:
        raise ModelError(f"{folder}: no config.json — name a folder that holds a checkpoint") from None
    except DataError as error:
        raise ModelError(str(error)) from None
    if "auto_map" in config and config.get("model_type") != ORIGINAL:
        console.print(f"[yellow]{escape(path)}: its own Python code (auto_map) is not run; native classes are used")
    return Checkpoint(folder, config, read_shapes(folder), path, revision)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, from the headers of the safetensors files.

    Raises:
        ModelError: for a shard that is missing, cut off or damaged, and for weights stored as pickle.
    """
    files = sorted(weight_files(folder))
    if not files:
        pickles = [file.name for file in folder.iterdir() if file.suffix in PICKLES]
        if pickles:
            raise ModelError(
                f"{folder / pickles[0]}: pickled weights can run code and are never read — convert it to safetensors"
            )
        raise ModelError(f"{folder}: no *.safetensors weights — copy them there or download it again")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= {name: tuple(entry["shape"]) for name, entry in read_header(file).items()}
    return shapes


def weight_files(folder: Path) -> set[Path]:
    """The safetensors files that make up a checkpoint; a shard that is missing is an error naming it."""
    if not (folder / INDEX).exists():
        return {file for file in folder.glob("*.safetensors") if not file.match(DUPLICATES)}
    try:
        names = set(read_json(folder / INDEX)["weight_map"].values())
    except (DataError, KeyError, AttributeError, TypeError):
        raise ModelError(f"{folder / INDEX}: damaged — copy or download it again") from None
    for name in sorted(names):
        if "/" in name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise ModelError(f"{folder / name}: this shard is missing — copy it there or download again")
    return {folder / name for name in names}


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of one safetensors file, checked against the file's length. Metadata is left out.

    Raises:
        ModelError: when the file is cut off or not safetensors at all.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(HEADER_LIMIT, size):
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelError(
            f"{file}: not a safetensors file, or its head is damaged — copy or download it again"
        ) from None
    if size != needed:
        raise ModelError(
            f"{file}: {size:,} bytes where its header announces {needed:,}; it is cut off or damaged — "
            "copy or download it again"
        )
    return header
