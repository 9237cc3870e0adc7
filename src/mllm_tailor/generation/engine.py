"""Greedy decoding of many replies side by side.

Rows share one cache. A finished row leaves, a waiting one joins, and what the schema forces is fed in one forward pass
instead of being decoded token by token. Rows whose forced spans differ in length are fed right-aligned blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mllm_tailor.core.device import CPU_TOKENS
from mllm_tailor.generation.constrain import Vocabulary, allowed_tokens
from mllm_tailor.generation.kv_cache import KVCache, append_columns, compact, empty_cache, no_cache, positions_of
from mllm_tailor.generation.prefix_sharing import share_prefixes, shortened
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.generation.shared_prefix_attention import Prefix, attend_to_prefixes, keeps_prefixes
from mllm_tailor.models import Encoded, LoadedModel, collate
from mllm_tailor.models.patches.last_layer import cache_name, last_layer_from
from mllm_tailor.models.vision_cache import VisionEncoder, VisionFeatureCache

LEAVE_BELOW = 0.75  # share of rows still living at which the finished ones are dropped from the cache
# A block is as wide as the longest span with at least this share of real tokens in it. A CPU pays for padding, so there
# a row with a long span goes along with the others step by step; a GPU does not notice the padding.
FULL_SHARE = {"cpu": 0.5}
CROSS_MASK = "cross_attention_mask"


class GenerationEngine:
    """Writes the replies of many rows, `slots` of them side by side."""

    def __init__(
        self,
        model: LoadedModel,
        vocabulary: Vocabulary,
        slots: int,
        *,
        memory: VisionFeatureCache | None = None,
        forward: bool = True,
    ) -> None:
        self.model = model
        self.cache_name = cache_name(model.model.forward)
        self.vision = VisionEncoder(model, memory)
        self.vocabulary = vocabulary
        self.slots = slots
        self.forward = forward  # feed forced tokens together
        self.rows: list[ReplySequence] = []  # as they lie in the cache
        self.next: list[ReplySequence] | None = None  # a group that did not fit yet
        self.held: KVCache | None = None
        self.apart = keeps_prefixes(model)  # rows hold what they wrote, and share their prompts
        config = model.model.config
        self.cross = frozenset(getattr(config.get_text_config(), "cross_attention_layers", None) or ())
        names = ("image_token_id", "video_token_id", "audio_token_id")
        self.media_ids = {number for name in names if (number := getattr(config, name, None)) is not None}
        # Models with three-part positions (Qwen2-VL, arXiv 2409.12191) count a picture's tokens differently from text.
        self.rotary = next((part for part in model.model.modules() if hasattr(part, "rope_deltas")), None)

    @torch.inference_mode()
    def run(self, waiting: Iterator[list[ReplySequence]]) -> Iterator[ReplySequence]:
        """Rows as they are finished. Groups that share media, at most `slots` rows each, join when half is free."""
        self.next = next(waiting, None)
        while self.next or self.rows:
            living = [line for line, row in enumerate(self.rows) if not row.done]
            fresh: list[ReplySequence] = []
            if len(living) <= self.slots // 2:
                while self.next and len(living) + len(fresh) + len(self.next) <= self.slots:
                    fresh += self.next
                    self.next = next(waiting, None)
            if fresh or not living or len(living) <= LEAVE_BELOW * len(self.rows):
                yield from self._renew(living, fresh)
            if any(not row.done for row in self.rows):
                yield from self._step()

    def _renew(self, living: list[int], fresh: list[ReplySequence]) -> list[ReplySequence]:
        """Drop the finished rows and join fresh ones; returns those that are finished with their first token."""
        started = time.perf_counter()
        parts = [(self.held, living)] if self.held is not None and living else []
        kept = [self.rows[line] for line in living]
        if fresh:
            held, lines = self._prefill(fresh)
            if self.apart and not all(row.done for row in fresh):
                # Among themselves: beside rows that choose token by token, what is forced would be fed so too.
                self.rows, self.held = fresh, held
                self._go_on()
                held = self.held
            parts.append((held, lines))
        self.rows = kept + fresh
        self.held = compact(parts) if parts else None
        share_time(started, fresh)
        return [row for row in fresh if row.done]

    @torch.inference_mode()
    def begin(self, rows: list[ReplySequence]) -> None:
        """Hold these rows alone, their prompts read but for the last token of each, which is pending."""
        held, lines = self._prefill(rows, whole=False)
        self.keep(rows, held, lines)

    def keep(self, rows: list[ReplySequence], held: KVCache, lines: Sequence[int]) -> None:
        """Hold rows whose pasts lie in the `lines` of `held`; a past may be taken several times."""
        self.rows, self.held = rows, compact([(held, lines)])

    def _prefill(self, rows: list[ReplySequence], whole: bool = True) -> tuple[KVCache, list[int]]:
        """Read the prompts; rows that ask about the same media share one reading of what their prompts share.

        `whole`: to their ends, the first tokens of the replies being chosen.
        """
        leaders, follows, lengths = share_prefixes(rows, self.media_ids)
        if not whole:
            lengths = [min(length, row.encoded.length - 1) for row, length in zip(leaders, lengths, strict=True)]
        prefixes = [
            shortened(row.encoded, length, self.model.family.token_wise)
            for row, length in zip(leaders, lengths, strict=True)
        ]
        if self.apart:
            kept, ids, logits = self._read_apart(prefixes)
            held, lines, shifts = no_cache(len(rows)), list(range(len(rows))), [0] * len(prefixes)
            for row, leader in zip(rows, follows, strict=True):
                row.prefix = kept[leader]
        else:
            held, ids, logits, shifts = self.read(prefixes)
            lines = follows
        ended = []  # rows whose prompt is read to its end: their last token is the block just fed
        for line, (row, leader) in enumerate(zip(rows, follows, strict=True)):
            if row.encoded.length == lengths[leader]:
                ended.append(line)
            fed = min(lengths[leader], row.encoded.length - 1)
            row.begin(fed, fed + shifts[leader], self.forward)
        if ended:
            read = [follows[line] for line in ended]
            self._advance([rows[line] for line in ended], ids[read, -1:], logits[read, -1:].float())
        return held, lines

    def _read_apart(self, prompts: Sequence[Encoded]) -> tuple[list[Prefix], Tensor, Tensor]:
        """Feed prompts: what each left in the layers, their last ids (prompts, 1), and the logits behind these."""
        found: dict[int, tuple[Prefix, Tensor, Tensor]] = {}
        for places in group_by_length([prompt.length for prompt in prompts]):
            held, ids, logits, _ = self._read([prompts[place] for place in places])
            for line, place in enumerate(places):
                found[place] = Prefix.of(held, line), ids[line, -1:], logits[line]
        kept, ids, logits = zip(*(found[place] for place in range(len(prompts))), strict=True)
        return list(kept), torch.stack(ids), torch.stack(logits)

    def read(self, prompts: Sequence[Encoded]) -> tuple[KVCache, Tensor, Tensor, list[int]]:
        """Feed prompts: their cache, their ids (left-padded), the last logits, and what their positions are off by.

        A CPU pays for padding and for masks, so there prompts are read together only where they are of one length.
        """
        if self.model.device.type != "cpu" or not self.model.family.tiled:
            return self._read(prompts)
        together = group_by_length([prompt.length for prompt in prompts])
        found = [self._read([prompts[place] for place in places]) for places in together]
        order = [place for places in together for place in places]
        back = sorted(range(len(order)), key=order.__getitem__)  # where each prompt lies in what was read
        lines = [(held, line) for held, *_ in found for line in range(held.rows)]
        width = max(prompt.length for prompt in prompts)
        ids = torch.cat([pad(part, (width - part.shape[1], 0), value=self.model.pad_id) for _, part, _, _ in found])
        logits = torch.cat([part for _, _, part, _ in found])
        held = compact([(lines[line][0], [lines[line][1]]) for line in back]) if len(found) > 1 else found[0][0]
        return held, ids[back], logits[back], [0] * len(prompts)

    def _read(self, prompts: Sequence[Encoded]) -> tuple[KVCache, Tensor, Tensor, list[int]]:
        """The same in one pass; tiled prompts of one length need no mask."""
        batch = collate(prompts, self.model, side="left")
        del batch["labels"]
        seen = self.vision.outputs(prompts)
        if seen is not None:
            del batch["pixel_values"]
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        mask, width = batch["attention_mask"], batch["input_ids"].shape[1]
        if self.rotary is None:
            batch["position_ids"] = positions_of(mask)
        if self.model.family.tiled and all(prompt.length == width for prompt in prompts):
            del batch["attention_mask"]
        cache = empty_cache()
        extra = {} if seen is None else {"mm_encoder_outputs": seen}
        with last_layer_from(self.model.model, width - 1, width):
            found = self.model.model(**batch, **extra, **{self.cache_name: cache}, use_cache=True, logits_to_keep=1)
        shifts = [0] * len(prompts) if self.rotary is None else self.rotary.rope_deltas.flatten().tolist()
        return KVCache(cache, mask, self.cross), batch["input_ids"], found.logits, shifts

    def _step(self) -> list[ReplySequence]:
        """Feed what is pending, choose one token for each living row, and return the rows this finished."""
        started = time.perf_counter()
        living = [row for row in self.rows if not row.done]
        self._go_on()
        share_time(started, living)
        return [row for row in living if row.done]

    def _go_on(self) -> None:
        """Feed every row a block of what is pending, and let it choose or be told what follows."""
        full_share = FULL_SHARE.get(self.model.device.type, 0)
        width = block_width([len(row.pending) for row in self.rows if not row.done], full_share)
        self._advance(self.rows, *self.feed(width))

    def feed(self, width: int) -> tuple[Tensor, Tensor]:
        """Feed up to `width` pending tokens of each row: ids (rows, width), logits behind them (rows, width, words)."""
        ids, real, positions = self._block(width)
        with attend_to_prefixes([row.prefix for row in self.rows]) if self.apart else nullcontext():
            logits = self.model.model(
                input_ids=ids,
                attention_mask=append_columns(self.held, real),
                position_ids=positions,
                **{self.cache_name: self.held.cache},
                use_cache=True,
                logits_to_keep=width,
                **self.pictures([row.encoded for row in self.rows], width),
            ).logits.float()
        return ids, logits

    def _advance(self, rows: Sequence[ReplySequence], ids: Tensor, logits: Tensor) -> None:
        """Let rows go on after their blocks `ids` (rows, width), by the `logits` (rows, width, vocabulary) behind."""
        width = ids.shape[1]
        nexts = self._nexts(rows, logits[:, -1], width)
        followers = torch.cat([ids[:, 1:], nexts[:, None]], dim=1)
        scores = (logits.gather(-1, followers[..., None]).squeeze(-1) - logits.logsumexp(-1)).tolist()
        for row, token, found in zip(rows, nexts.tolist(), scores, strict=True):
            if not row.done:
                count = min(width, len(row.pending))
                row.fed(count, found[width - count :])
                if not row.pending:
                    row.take(token, found[-1], self.vocabulary, self.forward)

    def pictures(self, prompts: Sequence[Encoded], width: int) -> dict[str, Tensor]:
        """For models whose layers look across at the pictures: new tokens look where the prompt's last one did."""
        if not self.cross:
            return {}
        masks = [prompt.media[CROSS_MASK][:, -1:] for prompt in prompts]  # (1, 1, pictures, tiles) each
        return {CROSS_MASK: torch.cat(masks).expand(-1, width, -1, -1).to(self.model.device)}

    def _block(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """What is pending, pushed to the right: ids, which of them are real, and their positions (rows, width)."""
        pad = self.model.pad_id
        ids, real, positions = [], [], []
        for row in self.rows:
            count = min(width, len(row.pending))
            empty = width - count
            ids.append([pad] * empty + row.pending[:count])
            real.append([0] * empty + [1] * count)
            positions.append([0] * empty + list(range(row.position, row.position + count)))
        ids, real, positions = torch.tensor([ids, real, positions], device=self.model.device)
        return ids, real, positions

    def allowed(self, rows: Sequence[ReplySequence], logits: Tensor, width: int) -> Tensor:
        """`logits` (rows, words) behind blocks of `width`, -inf for what the schema forbids to come next."""
        masks = np.full((len(rows), (self.vocabulary.width + 31) // 32), -1, np.int32)
        for line, row in enumerate(rows):
            if row.guide is not None and not row.done and len(row.pending) <= width:
                row.guide.fill(masks, line)
        found = torch.from_numpy(allowed_tokens(masks, logits.shape[-1])).to(logits.device)
        return logits.masked_fill(~found, -torch.inf)

    def _nexts(self, rows: Sequence[ReplySequence], logits: Tensor, width: int) -> Tensor:
        """(rows,) the token after each row's block: what is pending, or the most probable the schema allows."""
        nexts = self.allowed(rows, logits, width).argmax(-1)
        for line, row in enumerate(rows):
            if len(row.pending) > width:
                nexts[line] = row.pending[width]
        return nexts


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Places of equal lengths, at most CPU_TOKENS tokens of them.

    >>> alike([900, 40, 900, 40])
    [[0], [2], [1, 3]]
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        last = groups[-1] if groups else None
        if last and lengths[last[0]] == lengths[place] and (len(last) + 1) * lengths[place] <= CPU_TOKENS:
            last.append(place)
        else:
            groups.append([place])
    return groups


def block_width(pending: Sequence[int], full_share: float) -> int:
    """The widest block for rows with `pending` tokens of which at least `full_share` are real.

    >>> block_width([1, 1, 1, 12], 0.5), block_width([12, 12, 1], 0.5), block_width([1, 1, 1, 12], 0.0)
    (1, 12, 12)
    """
    widths = sorted(set(pending), reverse=True)
    shares = (sum(min(count, width) for count in pending) / (width * len(pending)) for width in widths)
    return next((width for width, share in zip(widths, shares, strict=True) if share >= full_share), widths[-1])


def share_time(started: float, rows: Sequence[ReplySequence]) -> None:
    """Spread the time since `started` over rows."""
    for row in rows:
        row.seconds += (time.perf_counter() - started) / len(rows)
