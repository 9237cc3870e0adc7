"""Checkpoints of sharded trainings: every process writes its own slices, and none holds the whole.

torch.distributed.checkpoint writes and reads them, as safetensors files that name the offset of each slice in its
tensor, so that any number of processes can read what another number wrote.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.training.checkpoint import PARTIAL_SHARDS
from mllm_tailor.training.distributed import barrier, rank, world_size

Groups = Mapping[str, Mapping[str, Tensor]]  # group -> name -> tensor


def separate(groups: Groups) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Sliced tensors as `group/name`, and groups of those that every process holds whole."""
    sliced = {
        f"{group}/{name}": tensor.detach()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
        if isinstance(tensor, DTensor)
    }
    kept = {
        group: {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}
        for group, tensors in groups.items()
    }
    return sliced, kept


def write_shards(folder: Path, name: str, sliced: Mapping[str, Tensor]) -> Path:
    """Write the slices of all processes into a folder beside the checkpoint `name` (collective); returns the folder.

    Raises:
        RunError: in every process, when one could not write.
    """
    partial = folder / f".{name}{PARTIAL_SHARDS}"
    if rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
    try:
        save(dict(sliced), storage_writer=writer)
    except CheckpointException as error:
        reason = "; ".join(f"process {number}: {failure}" for number, failure in error.failures.items())
        raise RunError(
            f"{folder / name}: cannot be written ({reason}) — make room and run the same command again; it resumes "
            "from the checkpoint before this one"
        ) from error
    return partial


def read_shards(folder: Path, target_of: Callable[[str, str], Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group -> name -> tensor of a folder's slices, sliced as the weight that `target_of(group, name)` names is now.

    A tensor of another shape than that weight is read whole. Collective.

    Raises:
        DataError: when slices are missing.
    """
    reader = HuggingFaceStorageReader(str(folder))
    targets: dict[str, Tensor] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        group, _, name = key.partition("/")
        if not name or not isinstance(stored, TensorStorageMetadata):  # of a file with tensors that all processes hold
            continue
        weight, dtype = target_of(group, name), stored.properties.dtype
        alike = weight.shape == stored.size
        targets[key] = torch.empty_like(weight, dtype=dtype) if alike else torch.empty(stored.size, dtype=dtype)
    try:
        load(targets, storage_reader=reader, no_dist=world_size() == 1)
    except CheckpointException as error:
        raise DataError(f"{folder}: slices of the checkpoint are missing — remove this folder") from error
    result: dict[str, dict[str, Tensor]] = {}
    for key, tensor in targets.items():
        group, _, name = key.partition("/")
        result.setdefault(group, {})[name] = tensor
    return result
