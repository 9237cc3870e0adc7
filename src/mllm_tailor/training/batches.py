"""From samples to batches on the device, the next ones being made ready while this one is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.models import NO_LOSS, Encoded, LoadedModel, collate, encode
from mllm_tailor.training.augment import ClipMemory, augment_sample

Batch = dict[str, Any]


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: numbers of its samples, and the epoch they are seen in."""

    samples: tuple[int, ...]
    epoch: int


class BatchSource(Protocol):
    """Batches of samples named by their numbers."""

    def batch(self, numbers: Sequence[int], epoch: int) -> Batch:
        """Right-padded inputs and labels, on the CPU."""
        ...


WHOLE = 32  # tokens: on a CPU the length of a pass is a multiple, since a new length has its kernels built anew
TILES_ACROSS = 2  # of a clip that is to be changed, so that being turned and resized costs it no detail


class LiveBatches:
    """Decodes and cuts the pictures anew whenever a sample's turn comes."""

    def __init__(
        self, model: LoadedModel, samples: Sequence[Conversation], loss: str, augment_seed: int | None
    ) -> None:
        self.model, self.samples, self.loss, self.augment_seed = model, samples, loss, augment_seed
        self.clips = ClipMemory(model.open_video, TILES_ACROSS * model.tile_size if model.family.tiled else 4096)

    def encode(self, number: int, epoch: int) -> Encoded:
        """One sample, its pictures changed a little where the recipe says so.

        A clip is trimmed before it is changed: trimmed afterwards, it would lie where it lay before.
        """
        sample, model = self.samples[number], self.model
        if self.augment_seed is not None:
            sample = augment_sample(sample, self.augment_seed, epoch, model.frames, self.clips)
            model = replace(model, trim=model.trim and any(media.kind != "video" for media in sample.media))
        return encode(sample, model, loss=self.loss)

    def batch(self, numbers: Sequence[int], epoch: int) -> Batch:
        """Encode and collate."""
        return collate_right([self.encode(number, epoch) for number in numbers], self.model)


def collate_right(items: Sequence[Encoded], model: LoadedModel) -> Batch:
    """Right-padded inputs and labels.

    A causal model's tokens never see the padding behind them, and padding carries no loss: such a batch needs no mask,
    and attention without one leaves out the half above the diagonal. Families whose places or towers are worked out
    from the mask keep it.
    """
    batch: Batch = dict(collate(items, model, side="right"))
    if model.family.tiled:
        del batch["attention_mask"]
        if model.device.type == "cpu":
            behind = (0, -batch["input_ids"].shape[1] % WHOLE)
            batch["input_ids"] = pad(batch["input_ids"], behind, value=model.pad_id)
            batch["labels"] = pad(batch["labels"], behind, value=NO_LOSS)
    return batch


class Prefetcher:
    """Makes batches in threads, a few before they are asked for."""

    def __init__(self, feed: BatchSource, workers: int) -> None:
        self.feed = feed
        self.ahead = 2 * workers
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="feed")
        self.coming: dict[MicroBatch, Future[Batch]] = {}

    def take(self, passes: Sequence[MicroBatch], then: Sequence[MicroBatch] = ()) -> Iterator[Batch]:
        """The batches of `passes` in order; the first of `then` are begun meanwhile."""
        line = [*passes, *then]
        for place in range(len(passes)):
            for one in line[place : place + 1 + self.ahead]:
                if one not in self.coming:
                    self.coming[one] = self.pool.submit(self.feed.batch, one.samples, one.epoch)
            yield self.coming.pop(line[place]).result()

    def close(self) -> None:
        """Stop; what was begun is dropped."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A copy with its tensors on the device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
