"""Beam search: several candidate replies to a document are kept, and the most probable complete one is returned.

Greedy decoding cannot revise a token that looked most probable at first; an error in a name or a number often shows a
few tokens later, when no continuation is probable. All beams of a document share one prefill.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mllm_tailor.generation.engine import GenerationEngine
from mllm_tailor.generation.sequence import ReplySequence


@dataclass(frozen=True)
class Beam:
    """A candidate: its sequence, the log-probability of its tokens among those the schema allows, and its past."""

    sequence: ReplySequence
    score: float
    kv_row: int  # of its past in the KV cache as it was before its last token


@dataclass
class BeamState:
    """The beams of a document."""

    live: list[Beam]  # in the order of their rows
    best: Beam | None = None  # the most probable finished one
    finished: list[Beam] = field(default_factory=list)  # all finished ones, the best among them
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        """Whether no live beam can become the best: each further token only lowers its score."""
        return not self.live or (self.best is not None and self.best.score >= max(beam.score for beam in self.live))


class BeamSearch:
    """Decodes replies by beam search, one batch of documents after another.

    The beams of a document advance in step, so forced tokens are decoded one by one. The reply brings all candidates
    that were left when it was chosen, with the log-probability of what is written of each.
    """

    def __init__(self, engine: GenerationEngine, slots: int, num_beams: int) -> None:
        """`slots`: documents side by side."""
        self.engine, self.slots, self.num_beams = engine, slots, num_beams

    @torch.inference_mode()
    def run(self, waiting: Iterator[list[ReplySequence]]) -> Iterator[ReplySequence]:
        """Sequences as they finish."""
        batch: list[ReplySequence] = []
        for group in waiting:
            if batch and len(batch) + len(group) > self.slots:
                yield from self._decode(batch)
                batch = []
            batch += group
        if batch:
            yield from self._decode(batch)

    def _decode(self, sequences: list[ReplySequence]) -> Iterator[ReplySequence]:
        states = [BeamState([Beam(sequence, 0.0, row)]) for row, sequence in enumerate(sequences)]
        started = time.perf_counter()
        self.engine.begin(sequences)
        while states:
            self._step(states)
            now = time.perf_counter()
            for state in states:
                state.seconds += (now - started) / len(states)
            started = now
            for state in states:
                if state.done:
                    yield self._reply(state)
            states = [state for state in states if not state.done]
            live = [beam for state in states for beam in state.live]
            if live:
                self.engine.select([beam.sequence for beam in live], self.engine.kv, [beam.kv_row for beam in live])

    def _reply(self, state: BeamState) -> ReplySequence:
        assert state.best is not None  # the limit ends every beam
        sequence = state.best.sequence
        sequence.seconds += state.seconds
        sequence.candidates = [(beam.sequence.tokens, beam.score) for beam in (*state.finished, *state.live)]
        return sequence

    def _step(self, states: Sequence[BeamState]) -> None:
        """Feed the last tokens of every beam, and keep the most probable continuations of each document."""
        sequences = self.engine.rows
        width = max(len(sequence.pending) for sequence in sequences)
        logits = self.engine.feed(width)[1][:, -1]
        logprobs = logits.log_softmax(-1).cpu()
        scores = self.engine.mask_logits(sequences, logits, width).log_softmax(-1).cpu()
        for sequence in sequences:
            sequence.fed(len(sequence.pending), [0.0] * len(sequence.pending))
        first = 0
        for state in states:
            rows = slice(first, first + len(state.live))
            self._expand(state, first, scores[rows], logprobs[rows])
            first = rows.stop

    def _expand(self, state: BeamState, first: int, scores: Tensor, logprobs: Tensor) -> None:
        """Replace a document's beams, which begin at row `first`, by their most probable continuations."""
        total = scores + torch.tensor([beam.score for beam in state.live])[:, None]
        top = total.flatten().topk(min(2 * self.num_beams, total.numel()))  # as many may finish as continue
        candidates = (top.values.tolist(), top.indices.tolist(), logprobs.flatten()[top.indices].tolist())
        live: list[Beam] = []
        for score, index, logprob in zip(*candidates, strict=True):
            if len(live) == self.num_beams or score == -torch.inf:
                break
            parent, token = divmod(index, total.shape[1])
            sequence = state.live[parent].sequence.fork()
            sequence.append(token, logprob, self.engine.vocabulary, feed_forced=False)
            beam = Beam(sequence, score, first + parent)
            if not sequence.done:
                live.append(beam)
                continue
            state.finished.append(beam)
            if state.best is None or score > state.best.score:
                state.best = beam
        state.live = in_row_order(live, range(first, first + len(state.live)))


def in_row_order(beams: Sequence[Beam], rows: range) -> list[Beam]:
    """Beams, the most probable first, in the order in which they take the rows that their document had.

    The most probable continuation of a beam stays in its row, so that only rows whose beam ended or was beaten are
    copied to. Where there are more or fewer beams than rows, all rows are copied, and the order does not matter.
    """
    if len(beams) != len(rows):
        return list(beams)
    heirs: dict[int, Beam] = {}
    others = [beam for beam in beams if heirs.setdefault(beam.kv_row, beam) is not beam]
    return [heirs[row] if row in heirs else others.pop() for row in rows]
