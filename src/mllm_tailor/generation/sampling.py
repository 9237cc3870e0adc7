"""Sampled replies: several to a prompt, the same whatever else is decoded beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.generation.constrain import Grammar
from mllm_tailor.generation.engine import GenerationEngine
from mllm_tailor.generation.predictor import vocabulary_of
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.models import LoadedModel, encode
from mllm_tailor.models.encode import media_token_ids
from mllm_tailor.models.vision_cache import VisionFeatureCache
from mllm_tailor.recipe import DecodingMode


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    The random number of a token depends on seed, sample, replica and position alone, so a reply does not depend on the
    batch in which it was drawn.
    """

    temperature: float
    top_p: float
    seed: int

    def __call__(self, rows: Sequence[ReplySequence], logits: Tensor) -> Tensor:
        """(rows,) the next token of each row; `logits` (rows, vocabulary) are -inf for what the schema forbids."""
        probabilities = (logits.double() / self.temperature).softmax(-1)
        drawn = torch.tensor([[self.uniform(row)] for row in rows], dtype=torch.float64, device=logits.device)
        if self.top_p >= 1:  # sorting a large vocabulary takes longer than a small model's step
            cumulative = probabilities.cumsum(-1)
            chosen = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
            return chosen.clamp(max=cumulative.shape[-1] - 1).squeeze(-1)
        ranked, order = probabilities.sort(-1, descending=True)
        cumulative = ranked.cumsum(-1)
        within = cumulative - ranked < self.top_p  # the likeliest is always among them
        mass = (ranked * within).sum(-1, keepdim=True)
        chosen = torch.searchsorted(cumulative, drawn * mass, right=True)
        return order.gather(-1, chosen.clamp(max=within.sum(-1, keepdim=True) - 1)).squeeze(-1)

    def uniform(self, row: ReplySequence) -> float:
        """In [0, 1)."""
        words = f"{self.seed} {row.index} {row.replica} {len(row.tokens)}".encode()
        return (int.from_bytes(hashlib.blake2b(words, digest_size=8).digest()) >> 11) / 2**53


@dataclass(frozen=True)
class ReplyRequest:
    """Which replies to sample."""

    count: int  # for each conversation
    sampling: Sampling
    limit: int  # tokens of a reply
    slots: int  # replies side by side, at least `count`
    grammar: Grammar | None = None  # otherwise any token but those that stand for media


def sample_replies(
    model: LoadedModel,
    conversations: Sequence[Conversation],
    request: ReplyRequest,
    cache: VisionFeatureCache | None = None,
) -> list[list[ReplySequence]]:
    """`request.count` finished replies to each conversation, whose labels the model does not see.

    Raises:
        DataError: naming a conversation that cannot be encoded.
    """
    slots = max(request.slots, request.count)
    forbidden = sorted(media_token_ids(model))

    def choose(rows: Sequence[ReplySequence], logits: Tensor) -> Tensor:
        if forbidden:
            logits[:, forbidden] = -torch.inf
        return request.sampling(rows, logits)

    engine = GenerationEngine(model, vocabulary_of(model), slots, cache=cache, choose=choose)
    replies: list[list[ReplySequence | None]] = [[None] * request.count for _ in conversations]
    mode = DecodingMode.UNCONSTRAINED if request.grammar is None else DecodingMode.CONSTRAINED

    def sequences() -> Iterator[list[ReplySequence]]:
        for index, conversation in enumerate(conversations):
            encoded = encode(conversation.unlabelled(), model)
            limit = min(request.limit, model.context - encoded.length)
            yield [
                ReplySequence(
                    index=index,
                    encoded=encoded,
                    media=conversation.media,
                    mode=mode,
                    guide=None if request.grammar is None else request.grammar.guide(),
                    limit=limit,
                    replica=replica,
                )
                for replica in range(request.count)
            ]

    for sequence in engine.run(sequences()):
        replies[sequence.index][sequence.replica] = sequence
    return [[reply for reply in group if reply is not None] for group in replies]
