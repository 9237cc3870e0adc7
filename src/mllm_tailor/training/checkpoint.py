"""Checkpoints that are whole or not there: tensors in safetensors, the rest in JSON, both under a checksum.

A checkpoint is written into a folder of another name, flushed to disk, sealed with a manifest of SHA-256 sums, and only
then renamed. Whoever finds a folder with the right name therefore finds all of it; damage done later is noticed.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import (
    atomic_folder,
    human_bytes,
    read_json,
    remove_folder,
    restore_partials,
    sha256,
    write_json,
)
from mllm_tailor.core.progress import console

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a training needs to go on: named groups of tensors, and plain values."""

    step: int  # optimizer steps done
    tensors: Mapping[str, Mapping[str, Tensor]]  # group -> name -> tensor
    values: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/step-000120` and remove all but the newest `keep`.

    Raises:
        RunError: when the disk is full; what was there before is whole.
    """
    place = folder / f"step-{checkpoint.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_verified(place, checkpoint)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise RunError(
            f"{place}: cannot be written ({error.strerror}; {human_bytes(_free(folder))} free) — make room and run the "
            "same command again; it goes on from the checkpoint before this one, which is whole"
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old)
    return place


def save_verified(place: Path, checkpoint: Checkpoint) -> None:
    """Write one checkpoint folder atomically, in place of what may be there."""
    with atomic_folder(place) as partial:
        for group, tensors in checkpoint.tensors.items():
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, partial / f"{group}.safetensors")
        write_json(partial / "state.json", {"step": checkpoint.step, **checkpoint.values})
        write_json(partial / MANIFEST, {file.name: sha256(file) for file in sorted(partial.iterdir())})


def read_newest(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """The newest checkpoint that is whole, or None; damaged ones are named and passed over."""
    for place in reversed(list_checkpoints(folder)):
        try:
            return load_verified(place, device)
        except DataError as error:
            console.print(f"[yellow]{error}; going back to the one before")
    return None


def load_verified(place: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read one checkpoint folder, its checksums verified.

    Raises:
        DataError: when anything in it is missing or altered.
    """
    try:
        manifest = read_json(place / MANIFEST)
        for name, expected in manifest.items():
            if sha256(place / name) != expected:
                raise DataError(f"{place / name}: damaged (checksum differs)")
        values = read_json(place / "state.json")
    except FileNotFoundError as error:
        raise DataError(f"{place}: incomplete ({error.filename} is missing)") from None
    tensors = {
        Path(name).stem: load_file(place / name, device=str(device))
        for name in manifest
        if name.endswith(".safetensors")
    }
    return Checkpoint(values.pop("step"), tensors, values)


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def clear_unfinished(folder: Path) -> None:
    """Clear what a killed writer or remover left behind."""
    if folder.is_dir():
        restore_partials(folder)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder if folder.exists() else folder.parent).free
