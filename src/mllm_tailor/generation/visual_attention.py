"""Attention of a reply's tokens to visual tokens: where the model looked while it wrote each of them.

The finished reply is fed once more after the keys and values of its prompt, and the decoder's attention to visual
tokens is kept. Which heads read the page differs between models and cannot be known beforehand, so each head counts by
how much its attention moves from token to token: the variance of its attention vectors, E|w|² - |E w|².
It is near 1 for a head that follows the print with a sharp look, and 0 for one that spreads evenly or always looks at
the same token, as heads without anything to do look at one token (attention sinks, arXiv 2309.17453). Nothing is
fitted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mllm_tailor.generation.kv_cache import empty_cache
from mllm_tailor.generation.prefill import Prefill
from mllm_tailor.generation.prefix_sharing import shortened
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.generation.shared_prefix_attention import Prefix
from mllm_tailor.models.inputs.visual_tokens import image_token_columns
from mllm_tailor.models.patches.recorded_attention import recording

POWER = 2  # of a head's variance in the weighted mean: the few heads that read decide


class _MeanAttention:
    """Attention of a reply's tokens to visual tokens, averaged over layers and heads as it arises."""

    def __init__(self, columns: Tensor, tokens: int, length: int) -> None:
        """`columns` of the visual tokens in the prompt; `length` of prompt and reply."""
        self.columns, self.tokens, self.length = columns, tokens, length
        self.sum = torch.zeros(tokens, len(columns))
        self.weight = 0.0

    def keep(self, _layer: int, weights: Tensor) -> None:
        """Add a layer's weights (1, heads, queries, keys); keys before the prompt are those of a tuned prefix."""
        own = weights[0, :, -self.tokens :, self.columns + weights.shape[-1] - self.length]  # (heads, tokens, columns)
        variance = own.square().sum(-1).mean(-1) - own.mean(1).square().sum(-1)
        share = variance.clamp(min=0) ** POWER
        self.sum += torch.einsum("h,htc->tc", share, own).cpu()
        self.weight += float(share.sum())

    def mean(self) -> Tensor:
        """(tokens, visual tokens); a row sums to 1 at most."""
        return self.sum / self.weight if self.weight else self.sum


@torch.inference_mode()
def visual_attention(prefill: Prefill, sequence: ReplySequence) -> Tensor:
    """(tokens of the reply, visual tokens) float32: the heads' mean attention while each token was written."""
    model, encoded = prefill.model, sequence.encoded
    read = encoded.length - 1  # the last token of the prompt is fed with the reply: it writes the first one
    cache, known = _past(prefill, sequence, read)
    ids = torch.tensor([encoded.ids[known:].tolist() + sequence.tokens[:-1]], device=model.device)
    end = known + ids.shape[1]
    columns = image_token_columns(encoded.ids, model).to(model.device)
    attention = _MeanAttention(columns, len(sequence.tokens), end)
    past = int(cache.get_seq_length())
    with recording(model.model, attention.keep):
        model.model(
            input_ids=ids,
            attention_mask=torch.ones(1, past + ids.shape[1], dtype=torch.long, device=model.device),
            position_ids=torch.arange(known, end, device=model.device)[None],
            **{prefill.cache_name: cache},
            use_cache=True,
            logits_to_keep=1,
        )
    return attention.mean()


def _past(prefill: Prefill, sequence: ReplySequence, read: int) -> tuple[Any, int]:
    """A cache of the first tokens of the prompt, `read` at most, and how many they are.

    The engine's copy where the sequence still has it; else the prompt is read again.
    """
    prefix = sequence.prefix
    if prefix is not None and prefix.values[0].shape[1] <= sequence.encoded.length:
        known = min(read, prefix.values[0].shape[1])
        return _cache_of(prefix, known), known
    prompt = shortened(sequence.encoded, read, prefill.model.family.token_wise)
    return prefill.read([prompt]).kv.cache, read


def _cache_of(prefix: Prefix, length: int) -> Any:
    cache = empty_cache()
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        cache.update(keys[None, ..., :length].transpose(-1, -2), values[None, :, :length], layer)
    return cache
