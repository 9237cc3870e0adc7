"""Beam search: several readings of a document are kept side by side, and the likeliest whole one is the reply.

Greedy writing cannot take back a letter that looked likeliest at first; a slip in a name or a digit often shows one or
two letters later, when no reading goes on well. All readings of a document look at one pass over it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllm_tailor.generation.engine import GenerationEngine
from mllm_tailor.generation.sequence import ReplySequence


@dataclass(frozen=True)
class Beam:
    """A reading: its row, the log probability of all it says among what the schema allowed, and where its past lies."""

    row: ReplySequence
    score: float
    line: int  # of the cache as it was before its last token


@dataclass
class BeamState:
    """The readings of one document."""

    live: list[Beam]  # the likeliest first
    best: Beam | None = None  # the likeliest of those that have ended
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        """Whether no living reading can still become the likeliest: each further token only costs."""
        return not self.live or (self.best is not None and self.best.score >= self.live[0].score)


class BeamSearch:
    """Writes replies by beam search, a batch of documents after the other, `count` readings of each.

    The readings of a document stay in step, so nothing the schema forces is fed ahead of its turn.
    """

    def __init__(self, decoder: GenerationEngine, slots: int, count: int) -> None:
        """`slots`: documents side by side."""
        self.decoder, self.slots, self.count = decoder, slots, count

    @torch.inference_mode()
    def run(self, waiting: Iterator[list[ReplySequence]]) -> Iterator[ReplySequence]:
        """Rows as they are finished."""
        batch: list[ReplySequence] = []
        for group in waiting:
            if batch and len(batch) + len(group) > self.slots:
                yield from self._write(batch)
                batch = []
            batch += group
        if batch:
            yield from self._write(batch)

    def _write(self, rows: list[ReplySequence]) -> Iterator[ReplySequence]:
        hunts = [BeamState([Beam(row, 0.0, line)]) for line, row in enumerate(rows)]
        started = time.perf_counter()
        self.decoder.begin(rows)
        while hunts:
            self._step(hunts)
            now = time.perf_counter()
            for hunt in hunts:
                hunt.seconds += (now - started) / len(hunts)
            started = now
            for hunt in hunts:
                if hunt.over:
                    yield self._reply(hunt)
            hunts = [hunt for hunt in hunts if not hunt.over]
            living = [beam for hunt in hunts for beam in hunt.live]
            if living:
                self.decoder.keep([beam.row for beam in living], self.decoder.held, [beam.line for beam in living])

    def _reply(self, hunt: BeamState) -> ReplySequence:
        row = hunt.best.row  # type: ignore[union-attr]  # an ended one is there: the limit ends every reading
        row.seconds += hunt.seconds
        return row

    def _step(self, hunts: Sequence[BeamState]) -> None:
        """Feed what every reading said last, and let the likeliest continuations of each document live on."""
        rows = self.decoder.rows
        width = max(len(row.pending) for row in rows)
        logits = self.decoder.feed(width)[1][:, -1]
        shares = logits.log_softmax(-1).cpu()
        scores = self.decoder.allowed(rows, logits, width).log_softmax(-1).cpu()
        for row in rows:
            row.fed(len(row.pending), [0.0] * len(row.pending))
        line = 0
        for hunt in hunts:
            mine = slice(line, line + len(hunt.live))
            self._grow(hunt, line, scores[mine], shares[mine])
            line = mine.stop

    def _grow(self, hunt: BeamState, line: int, scores: Tensor, shares: Tensor) -> None:
        """The likeliest readings that are one token longer than a document's `hunt.live`, which begin at `line`."""
        total = scores + torch.tensor([beam.score for beam in hunt.live])[:, None]
        likeliest = total.flatten().topk(min(2 * self.count, total.numel()))  # as many may end as live on
        children: list[Beam] = []
        for score, place in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
            if len(children) == self.count or score == -torch.inf:
                break
            parent, token = divmod(place, total.shape[1])
            row = hunt.live[parent].row.fork()
            row.take(token, float(shares[parent, token]), self.decoder.vocabulary, forward=False)
            child = Beam(row, score, line + parent)
            if not row.done:
                children.append(child)
            elif hunt.best is None or score > hunt.best.score:
                hunt.best = child
        hunt.live = children
