"""Prompts about the same media share one forward pass over their common prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.models import Encoded


def share_prefixes(
    rows: Sequence[ReplySequence], media_ids: set[int]
) -> tuple[list[ReplySequence], list[int], list[int]]:
    """Group neighbouring rows about the same media: leaders, the leader of each row, and each leader's prefix length.

    Prompts that differ share what precedes the difference, if it contains all media and attention is causal.
    """
    leaders: list[ReplySequence] = []
    follows: list[int] = []
    lengths: list[int] = []
    for row in rows:
        if leaders and (_of_one_prompt(row, leaders[-1]) or (row.media and row.media == leaders[-1].media)):
            first, ids = leaders[-1].encoded.ids, row.encoded.ids
            common = common_length(first[: lengths[-1]], ids)
            rest = {*first[common:].tolist(), *ids[common:].tolist()}
            causal = "token_type_ids" not in row.encoded.media  # attention within a token type is bidirectional
            if not rest or (media_ids and causal and not media_ids & rest):
                lengths[-1] = common
                follows.append(len(leaders) - 1)
                continue
        follows.append(len(leaders))
        leaders.append(row)
        lengths.append(row.encoded.length)
    return leaders, follows, lengths


def _of_one_prompt(row: ReplySequence, other: ReplySequence) -> bool:
    return (row.index, row.framing) == (other.index, other.framing)


def common_length(first: Tensor, second: Tensor) -> int:
    """The length of the common prefix of two prompts."""
    most = min(len(first), len(second))
    different = (first[:most] != second[:most]).nonzero()
    return int(different[0]) if len(different) else most


def shortened(encoded: Encoded, length: int, token_wise: Sequence[str]) -> Encoded:
    """The first tokens of a prompt, with all of its media."""
    if length == encoded.length:
        return encoded
    media = {name: values[:, :length] if name in token_wise else values for name, values in encoded.media.items()}
    return replace(encoded, ids=encoded.ids[:length], labels=encoded.labels[:length], media=media)
