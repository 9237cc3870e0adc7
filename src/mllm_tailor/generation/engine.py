"""Batched decoding with a shared KV cache, greedy or sampled.

A finished sequence leaves the batch and a waiting one joins. Tokens that the schema forces are fed in one forward pass
instead of being decoded one by one; sequences whose forced spans differ in length are fed as right-aligned blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from mllm_tailor.core.device import upload
from mllm_tailor.generation.constrain import Vocabulary, allowed_tokens
from mllm_tailor.generation.decoder_step import DecoderStep
from mllm_tailor.generation.kv_cache import KVCache, append_columns, compact, no_cache, rearrange
from mllm_tailor.generation.prefill import Prefill
from mllm_tailor.generation.prefix_sharing import share_prefixes, shortened
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.generation.shared_prefix_attention import SharedPrefixAttention, attend_to_prefixes
from mllm_tailor.models import LoadedModel
from mllm_tailor.models.vision_cache import VisionFeatureCache

COMPACT_BELOW = 0.75  # share of unfinished rows at which the finished ones are dropped from the cache
# A block is as wide as the longest span with at least this share of real tokens in it. Padding costs time on a CPU, so
# there a row with a long span is fed along with the others step by step; on a GPU padding costs nothing measurable.
FULL_SHARE = {"cpu": 0.5}

Choose = Callable[[Sequence[ReplySequence], Tensor], Tensor]


class GenerationEngine:
    """Decodes the replies of many sequences, `slots` of them side by side."""

    def __init__(
        self,
        model: LoadedModel,
        vocabulary: Vocabulary,
        slots: int,
        *,
        cache: VisionFeatureCache | None = None,
        feed_forced: bool = True,
        choose: Choose | None = None,
    ) -> None:
        """`feed_forced`: forced tokens are fed together; otherwise they are decoded one by one.

        `choose` takes rows and their masked logits and returns the next tokens; default: the most probable ones.
        """
        self.model = model
        self.vocabulary = vocabulary
        self.slots = slots
        self.feed_forced = feed_forced
        self.choose = choose
        self.prefill = Prefill(model, cache)
        self.rows: list[ReplySequence] = []  # as they lie in the KV cache
        self.waiting_group: list[ReplySequence] | None = None  # did not fit yet
        self.kv = no_cache(0)
        self.decoder_step: DecoderStep | None = None  # over the weights as they were when decoding began
        self.on_step: Callable[[Sequence[ReplySequence]], None] | None = None  # gets the rows that a step continued

    @torch.inference_mode()
    def run(self, waiting: Iterator[list[ReplySequence]]) -> Iterator[ReplySequence]:
        """Sequences as they finish. Groups that share media, at most `slots` rows each, join when half is free.

        An empty group means that nothing is waiting at the moment: it is asked again before the next step.
        """
        self._prepare()
        self.waiting_group = next(waiting, None)
        while self.waiting_group is not None or self.rows:
            unfinished = [index for index, row in enumerate(self.rows) if not row.done]
            joining: list[ReplySequence] = []
            if len(unfinished) <= self.slots // 2:
                while self._fits(len(unfinished) + len(joining)):
                    joining += self.waiting_group or ()
                    self.waiting_group = next(waiting, None)
                    if self.waiting_group == []:
                        break
            if joining or not unfinished or len(unfinished) <= COMPACT_BELOW * len(self.rows):
                yield from self._renew(unfinished, joining)
            if any(not row.done for row in self.rows):
                yield from self._step()

    def _fits(self, occupied: int) -> bool:
        """Whether the waiting group, where there is one, fits beside this many rows."""
        return self.waiting_group is not None and occupied + len(self.waiting_group) <= self.slots

    def _renew(self, unfinished: list[int], joining: list[ReplySequence]) -> list[ReplySequence]:
        """Drop the finished rows and add new ones; returns those that are finished after their first token."""
        started = time.perf_counter()
        parts = [(self.kv, unfinished)] if unfinished else []
        remaining = [self.rows[index] for index in unfinished]
        if joining:
            kv, indices = self._prefill(joining, complete=True)
            if self.prefill.shares_prefixes and not all(row.done for row in joining):
                # Among themselves: beside rows that decode token by token, forced tokens would be fed one by one too.
                self.rows, self.kv = joining, kv
                self._decode_block()
                kv = self.kv
            parts.append((kv, indices))
        self.rows = remaining + joining
        self.kv = compact(parts) if parts else no_cache(0)
        share_time(started, joining)
        return [row for row in joining if row.done]

    @torch.inference_mode()
    def begin(self, rows: list[ReplySequence]) -> None:
        """Hold these rows only, their prompts read up to the last token of each, which is pending."""
        self._prepare()
        kv, indices = self._prefill(rows, complete=False)
        self.select(rows, kv, indices)

    def _prepare(self) -> None:
        """Weights may have changed since the last replies."""
        self.decoder_step = DecoderStep.of(self.model) if self.prefill.shares_prefixes else None

    def select(self, rows: list[ReplySequence], kv: KVCache, indices: Sequence[int]) -> None:
        """Hold rows whose pasts are the rows `indices` of `kv`, which is used up; a past may be used several times."""
        self.rows, self.kv = rows, rearrange(kv, indices)

    def _prefill(self, rows: list[ReplySequence], *, complete: bool) -> tuple[KVCache, list[int]]:
        """Read the prompts; rows about the same media share the pass over what their prompts have in common.

        `complete`: to their ends, so that the first tokens of the replies are chosen.
        """
        leaders, follows, lengths = share_prefixes(rows, self.prefill.media_ids)
        if not complete:
            lengths = [min(length, row.encoded.length - 1) for row, length in zip(leaders, lengths, strict=True)]
        prompts = [
            shortened(row.encoded, length, self.model.family.token_wise)
            for row, length in zip(leaders, lengths, strict=True)
        ]
        if self.prefill.shares_prefixes:
            prefixes, ids, logits = self.prefill.read_prefixes(prompts)
            kv, indices, shifts = no_cache(len(rows)), list(range(len(rows))), [0] * len(prompts)
            for row, leader in zip(rows, follows, strict=True):
                row.prefix = prefixes[leader]
        else:
            result = self.prefill.read(prompts)
            kv, ids, logits, shifts, indices = result.kv, result.ids, result.logits, result.shifts, follows
        complete_rows = []  # their prompt is read to its end: the last token is the block just fed
        for index, (row, leader) in enumerate(zip(rows, follows, strict=True)):
            if row.encoded.length == lengths[leader]:
                complete_rows.append(index)
            fed = min(lengths[leader], row.encoded.length - 1)
            row.begin(fed, fed + shifts[leader], feed_forced=self.feed_forced)
        if complete_rows:
            read = [follows[index] for index in complete_rows]
            self._advance([rows[index] for index in complete_rows], ids[read, -1:], logits[read, -1:].float())
        return kv, indices

    def _step(self) -> list[ReplySequence]:
        """Feed what is pending, choose a token for each unfinished row, and return the rows this finished."""
        started = time.perf_counter()
        unfinished = [row for row in self.rows if not row.done]
        self._decode_block()
        share_time(started, unfinished)
        if self.on_step is not None:
            self.on_step(unfinished)
        return [row for row in unfinished if row.done]

    def _decode_block(self) -> None:
        """Feed every row a block of pending tokens, and append what follows it."""
        full_share = FULL_SHARE.get(self.model.device.type, 0)
        width = block_width([len(row.pending) for row in self.rows if not row.done], full_share)
        self._advance(self.rows, *self.feed(width))

    def feed(self, width: int) -> tuple[Tensor, Tensor]:
        """Feed up to `width` pending tokens per row: ids (rows, width), logits after them (rows, width, vocabulary)."""
        device = self.model.device
        ids, real, positions = self._block(width)
        ids, positions = upload(ids, device), upload(positions, device)
        mask = append_columns(self.kv, real)
        prefixes = [row.prefix for row in self.rows if row.prefix is not None]
        if self.decoder_step is not None:
            return ids, self.decoder_step.logits(ids, positions, self.kv, SharedPrefixAttention.of(prefixes))
        with attend_to_prefixes(prefixes) if self.prefill.shares_prefixes else nullcontext():
            logits = self.model.model(
                input_ids=ids,
                attention_mask=upload(mask, device),
                position_ids=positions,
                **{self.prefill.cache_name: self.kv.cache},
                use_cache=True,
                logits_to_keep=width,
                **self.prefill.cross_attention_inputs([row.encoded for row in self.rows], self.kv, width),
            ).logits.float()
        return ids, logits

    def _advance(self, rows: Sequence[ReplySequence], ids: Tensor, logits: Tensor) -> None:
        """Continue rows after their blocks `ids` (rows, width) by the `logits` (rows, width, vocabulary) after them."""
        width = ids.shape[1]
        next_tokens = self._next_tokens(rows, logits[:, -1], width)
        followers = torch.cat([ids[:, 1:], next_tokens[:, None]], dim=1)
        logprobs = logits.gather(-1, followers[..., None]).squeeze(-1) - logits.logsumexp(-1)
        # In one message, as the host waits for each; float64 holds tokens and float32 exactly.
        for row, (number, *scores) in zip(
            rows, torch.cat([next_tokens[:, None], logprobs.double()], 1).tolist(), strict=True
        ):
            token = int(number)
            if not row.done:
                count = min(width, len(row.pending))
                row.fed(count, scores[width - count :])
                if not row.pending:
                    row.append(token, scores[-1], self.vocabulary, feed_forced=self.feed_forced)

    def _block(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """What is pending, right-aligned, on the CPU: ids, which of them are real, their positions (rows, width)."""
        ids, real, positions = [], [], []
        for row in self.rows:
            count = min(width, len(row.pending))
            empty = width - count
            ids.append([self.model.pad_id] * empty + row.pending[:count])
            real.append([0] * empty + [1] * count)
            positions.append([0] * empty + list(range(row.position, row.position + count)))
        return torch.tensor(ids), torch.tensor(real), torch.tensor(positions)

    def mask_logits(self, rows: Sequence[ReplySequence], logits: Tensor, width: int) -> Tensor:
        """`logits` (rows, vocabulary) after blocks of `width`, -inf for tokens the schema forbids to come next."""
        masks = np.full((len(rows), (self.vocabulary.width + 31) // 32), -1, np.int32)
        for index, row in enumerate(rows):
            if row.guide is not None and not row.done and len(row.pending) <= width:
                row.guide.fill(masks, index)
        allowed = upload(torch.from_numpy(allowed_tokens(masks, logits.shape[-1])), logits.device)
        return logits.masked_fill(~allowed, -torch.inf)

    def _next_tokens(self, rows: Sequence[ReplySequence], logits: Tensor, width: int) -> Tensor:
        """(rows,) the token after each row's block: the next pending one, or one that the schema allows."""
        masked = self.mask_logits(rows, logits, width)
        tokens = masked.argmax(-1) if self.choose is None else self.choose(rows, masked)
        given = [row.pending[width] if len(row.pending) > width else -1 for row in rows]
        if max(given) < 0:
            return tokens
        known = upload(torch.tensor(given), tokens.device)
        return torch.where(known < 0, tokens, known)


def block_width(pending: Sequence[int], full_share: float) -> int:
    """The widest block for rows with `pending` tokens of which at least `full_share` are real.

    >>> block_width([1, 1, 1, 12], 0.5), block_width([12, 12, 1], 0.5), block_width([1, 1, 1, 12], 0.0)
    (1, 12, 12)
    """
    widths = sorted(set(pending), reverse=True)
    shares = (sum(min(count, width) for count in pending) / (width * len(pending)) for width in widths)
    return next((width for width, share in zip(widths, shares, strict=True) if share >= full_share), widths[-1])


def share_time(started: float, rows: Sequence[ReplySequence]) -> None:
    """Divide the time since `started` among rows."""
    for row in rows:
        row.seconds += (time.perf_counter() - started) / len(rows)
