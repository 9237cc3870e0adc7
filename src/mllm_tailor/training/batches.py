"""Batches of encoded samples, prepared in background threads while the model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import upload
from mllm_tailor.models import NO_LOSS, Encoded, LoadedModel, collate, encode
from mllm_tailor.training.augment import VideoCache, augment_sample

Batch = dict[str, Any]
LossTokens = Literal["answer", "all"]


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass: indices of its samples, and the epoch in which they are seen."""

    samples: tuple[int, ...]
    epoch: int


class BatchSource(Protocol):
    """Batches of samples given by their indices."""

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Right-padded inputs and labels, on the CPU."""
        ...


LENGTH_MULTIPLE = 32  # tokens: on a CPU every new length costs oneDNN new kernels
TILES_ACROSS = 2  # resolution of a video that is augmented, so that rotation and resizing cost no detail


class LiveBatches:
    """Decodes and tiles the media of a sample whenever it is needed."""

    def __init__(
        self, model: LoadedModel, samples: Sequence[Conversation], loss: LossTokens, augment_seed: int | None
    ) -> None:
        self.model, self.samples, self.loss, self.augment_seed = model, samples, loss, augment_seed
        self.videos = VideoCache(model.open_video, TILES_ACROSS * model.tile_size if model.family.tiled else 4096)

    def encode(self, index: int, epoch: int) -> Encoded:
        """One sample, augmented where the recipe asks for it.

        A video is trimmed before it is augmented: trimming afterwards would undo its displacement.
        """
        sample, model = self.samples[index], self.model
        if self.augment_seed is not None:
            sample = augment_sample(sample, self.augment_seed, epoch, model.frames, self.videos)
            model = replace(model, trim=model.trim and any(media.kind != "video" for media in sample.media))
        return encode(sample, model, loss=self.loss)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Encode and collate."""
        return collate_right([self.encode(index, epoch) for index in indices], self.model)


def collate_right(items: Sequence[Encoded], model: LoadedModel) -> Batch:
    """Right-padded inputs and labels.

    In a causal model no token attends to the padding after it, and padding carries no loss: such a batch needs no mask,
    and attention without a mask skips the half above the diagonal. Families that derive positions or vision inputs from
    the mask keep it.
    """
    batch: Batch = dict(collate(items, model, side="right"))
    if model.family.tiled:
        del batch["attention_mask"]
        if model.device.type == "cpu":
            padding = (0, -batch["input_ids"].shape[1] % LENGTH_MULTIPLE)
            batch["input_ids"] = pad(batch["input_ids"], padding, value=model.pad_id)
            batch["labels"] = pad(batch["labels"], padding, value=NO_LOSS)
    return batch


class Prefetcher:
    """Prepares batches in threads, a few before they are needed."""

    def __init__(self, source: BatchSource, workers: int) -> None:
        self.source = source
        self.depth = 2 * workers
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self.pending: dict[MicroBatch, Future[Batch]] = {}

    def batches(self, wanted: Sequence[MicroBatch], upcoming: Sequence[MicroBatch] = ()) -> Iterator[Batch]:
        """The batches of `wanted` in order; the first of `upcoming` are begun meanwhile."""
        queue = [*wanted, *upcoming]
        for index in range(len(wanted)):
            for micro_batch in queue[index : index + 1 + self.depth]:
                if micro_batch not in self.pending:
                    future = self.pool.submit(self.source.batch, micro_batch.samples, micro_batch.epoch)
                    self.pending[micro_batch] = future
            yield self.pending.pop(queue[index]).result()

    def close(self) -> None:
        """Stop; batches in preparation are dropped."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A copy with its tensors on the device, except the labels: they decide shapes, which the host must know."""
    return {
        name: upload(value, device) if isinstance(value, Tensor) and name != "labels" else value
        for name, value in batch.items()
    }
