"""Atomic, verified checkpoints: tensors in safetensors, plain values in JSON, and a manifest of SHA-256 sums.

A checkpoint is written into a folder of another name, flushed to disk and then renamed: a folder with the right name is
complete. Damage done later is noticed by its manifest.
"""

from __future__ import annotations

import errno
import logging
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

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
REQUIRED = {"state.json", "weights.safetensors"}
PARTIAL_SHARDS = ".shards"  # the ending of the folder into which sharded processes write
SHARD_PREFIX = "shard-"  # of files with slices of tensors, see sharded_checkpoint.py


@dataclass(frozen=True)
class Checkpoint:
    """Everything a training needs to resume: named groups of tensors, and plain values."""

    step: int  # optimizer steps done
    tensors: Mapping[str, Mapping[str, Tensor]]  # group -> name -> tensor
    values: Mapping[str, Any]
    shards: Path | None = None  # the folder with slices of further tensors, where the model is sharded


def checkpoint_name(step: int) -> str:
    """The folder's name; names are in the order of steps."""
    return f"step-{step:08d}"


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/step-00000120` and remove all but the newest `keep`.

    Raises:
        RunError: when the disk is full; earlier checkpoints are untouched.
    """
    path = folder / checkpoint_name(checkpoint.step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_verified(path, checkpoint)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise RunError(
            f"{path}: cannot be written ({error.strerror}; {human_bytes(_free(folder))} free) — make room and run the "
            "same command again; it resumes from the checkpoint before this one"
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old)
    return path


def save_verified(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint folder atomically, replacing an earlier one of the same name."""
    with atomic_folder(path) as partial:
        for group, tensors in checkpoint.tensors.items():
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, partial / f"{group}.safetensors")
        if checkpoint.shards is not None:
            for file in checkpoint.shards.iterdir():
                file.rename(partial / file.name)
            checkpoint.shards.rmdir()
        write_json(partial / "state.json", {"step": checkpoint.step, **checkpoint.values})
        write_json(partial / MANIFEST, {file.name: sha256(file) for file in sorted(partial.iterdir())})


def read_newest(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """The newest intact checkpoint, or None; damaged ones are logged and skipped."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_verified(path, device)
        except DataError as error:
            logger.warning("%s; using the checkpoint before it", error)
    return None


def load_verified(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint folder and verify its checksums.

    Raises:
        DataError: when anything in it is missing or altered.
    """
    try:
        manifest = read_json(path / MANIFEST)
        if not isinstance(manifest, dict) or not manifest.keys() >= REQUIRED:
            raise DataError(f"{path / MANIFEST}: damaged (it does not list {', '.join(sorted(REQUIRED))})")
        for name, expected in manifest.items():
            if sha256(path / name) != expected:
                raise DataError(f"{path / name}: damaged (checksum differs)")
        values = read_json(path / "state.json")
    except FileNotFoundError as error:
        raise DataError(f"{path}: incomplete ({error.filename} is missing)") from None
    tensors = {
        Path(name).stem: load_file(path / name, device=str(device))
        for name in manifest
        if name.endswith(".safetensors") and not name.startswith(SHARD_PREFIX)
    }
    sharded = any(name.startswith(SHARD_PREFIX) for name in manifest)
    return Checkpoint(values.pop("step"), tensors, values, path if sharded else None)


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    if folder.is_dir():
        restore_partials(folder)
        for shards in folder.glob(f".*{PARTIAL_SHARDS}"):
            shutil.rmtree(shards, ignore_errors=True)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder if folder.exists() else folder.parent).free
