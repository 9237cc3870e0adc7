"""Inspect the files of a checkpoint before anything is loaded: no code, no pickle, nothing missing or truncated."""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError, ModelError, TailorError
from mllm_tailor.core.io import read_json

logger = logging.getLogger(__name__)

DUPLICATES = "consolidated*.safetensors"  # duplicates of the weights, under Mistral's names
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's files
DOCUMENTS = (".json", ".jinja", ".txt", ".model")
LARGEST_DOCUMENT = 512 * 2**20  # bytes; the largest tokenizers have about 40 MB
PROCESSOR = (  # what turns samples into inputs and replies into text, by the names of all libraries
    "tokenizer*", "*processor_config.json", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.model", "tekken.json", "generation_config.json",
)  # fmt: skip
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ORIGINAL = "internvl_chat"  # model type of InternVL in its first layout, which is converted
INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100 * 2**20  # limit of the format for its header, in bytes
BITS = {  # of an element, by safetensors' names
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
DEPTHS = ("layers", "depth", "blocks")  # suffixes of settings that count layers
MAX_DEPTH = 10_000  # of a plausible model; each layer costs time and memory even without weights


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder, configuration and the shape of every weight."""

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    path: str  # the name it was requested by
    revision: str | None

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def model_type(self) -> str:
        """`model_type` of config.json."""
        return str(self.config.get("model_type"))


@contextmanager
def reading(path: Path, problem: str, fix: str) -> Iterator[None]:
    """Name the file when a reader fails on it. Third-party readers raise anything, down to bare `Exception`.

    Raises:
        ModelError: `path`, the problem, the reader's reason and the fix.
    """
    try:
        yield
    except TailorError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ModelError(f"{path}: {problem} ({lines[0] if lines else type(error).__name__}) — {fix}") from error


def read_checkpoint(folder: Path, path: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint in a folder; `path` is the name it was requested by.

    Raises:
        ModelError: naming the file and what to do, for anything missing, damaged or unsafe.
    """
    _check_sizes(folder)
    file = folder / "config.json"
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise ModelError(_no_config(folder)) from None
    except DataError as error:
        raise ModelError(str(error)) from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{file}: names no model_type — copy or download it again")
    _check_depths(config, file)
    if "auto_map" in config and config["model_type"] != ORIGINAL:
        logger.warning("%s: the Python code of the checkpoint (auto_map) is not run; native classes are used", path)
    return Checkpoint(folder, config, read_shapes(folder), path, revision)


def _no_config(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return (
            f"{folder}: an adapter, not a model — name the model it was trained on, or merge it first (`tailor merge`)"
        )
    return f"{folder}: no config.json — name a folder that holds a checkpoint"


def _check_sizes(folder: Path) -> None:
    """Refuse a tokenizer, template or configuration far beyond any real one, which its library would read whole."""
    for file in folder.iterdir():
        if file.suffix in DOCUMENTS and file.is_file() and (size := file.stat().st_size) > LARGEST_DOCUMENT:
            raise ModelError(
                f"{file}: {size:,} bytes, over the limit of {LARGEST_DOCUMENT:,} — copy or download it again"
            )


def _check_depths(config: Mapping[str, Any], file: Path) -> None:
    for name, value in config.items():
        if isinstance(value, Mapping):
            _check_depths(value, file)
        elif name.endswith(DEPTHS) and isinstance(value, int) and not 0 <= value <= MAX_DEPTH:
            raise ModelError(f"{file}: `{name}` is {value:,} — copy or download it again")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, from the headers of the safetensors files.

    Raises:
        ModelError: for a shard that is missing, truncated or damaged, and for weights stored as pickle.
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
    """The safetensors files that make up a checkpoint; a missing shard is an error naming it."""
    if not (folder / INDEX).exists():
        present = (file for file in folder.glob("*.safetensors") if not file.match(DUPLICATES))
        return {file for file in present if file.name != ADAPTER_WEIGHTS}
    try:
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        files = [folder / name for name in names]
    except (DataError, KeyError, AttributeError, TypeError):
        raise ModelError(f"{folder / INDEX}: damaged — copy or download it again") from None
    for name, file in zip(names, files, strict=True):
        if "/" in name or not name.endswith(".safetensors") or not file.is_file():
            raise ModelError(f"{file}: this shard is missing — copy it there or download again")
    return set(files)


def processor_files(folder: Path) -> set[Path]:
    """Tokenizer, image processor, chat template and generation settings of a checkpoint."""
    return {file for pattern in PROCESSOR for file in folder.glob(pattern) if file.is_file()}


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file, checked against the file's length. Metadata is left out.

    Raises:
        ModelError: when the file is truncated or not safetensors at all.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(HEADER_LIMIT, size):
                raise ValueError("header longer than the file")
            header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((_check_entry(entry) for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ModelError(
            f"{file}: not a safetensors file, or its header is damaged — copy or download it again"
        ) from None
    needed = 8 + length + end
    if size != needed:
        raise ModelError(
            f"{file}: {size:,} bytes where its header states {needed:,}; it is truncated or damaged — "
            "copy or download it again"
        )
    return header


def _check_entry(entry: Mapping[str, Any]) -> int:
    """The end of a tensor's bytes, once its dtype and shape are known to fill them."""
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if any(not isinstance(side, int) or side < 0 for side in (*shape, start, end)):
        raise ValueError("a size below zero")
    if math.prod(shape) * BITS[entry["dtype"]] != 8 * (end - start):
        raise ValueError("a shape that does not fill its bytes")
    return int(end)
