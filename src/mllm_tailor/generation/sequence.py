"""One reply being written: what was said, how probable it was, and what is still to be fed to the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mllm_tailor.core.sample import Media
from mllm_tailor.generation.constrain import Guide, Vocabulary
from mllm_tailor.generation.shared_prefix_attention import Prefix
from mllm_tailor.models import Encoded


@dataclass
class ReplySequence:
    """One reply being written."""

    index: int  # of its sample
    encoded: Encoded
    media: tuple[Media, ...]
    held: bool  # whether the reply is to follow the task's schema
    guide: Guide | None  # None: free text
    limit: int  # most tokens of the reply; closing a reply that was cut may take a few more
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of `tokens`, by the model alone, before the schema's mask
    pending: list[int] = field(default_factory=list)  # chosen, forced or asked, but not yet fed to the model
    unscored: int = 0  # how many of the last `pending` tokens are forced and still lack their log probability
    position: int = 0  # of the next token fed
    seconds: float = 0.0  # its share of the time
    full: bool = False  # nothing more is asked of the model, except the probability of forced tokens
    cut: bool = False
    done: bool = False
    name: str = ""  # of the one field it writes, where fields are written side by side
    prefix: Prefix | None = None  # what it looks at beside the cache, where that is kept apart

    def begin(self, fed: int, position: int, forward: bool) -> None:
        """Go on from a prompt of which the first `fed` tokens are in the cache."""
        self.pending = self.encoded.ids[fed:].tolist()
        self.position = position
        self._force(forward)

    def fed(self, count: int, scores: Sequence[float]) -> None:
        """Note that the first `count` pending tokens were fed; `scores` are the log probabilities of what follows each.

        After the last of them that is the next pending token or, when none is left, the model's choice, see `take`.
        """
        known = scores[: len(self.pending) - 1]
        self.logprobs += known[len(self.pending) - 1 - self.unscored :]
        self.pending = self.pending[count:]
        self.unscored = max(0, min(self.unscored, len(self.pending) - 1))
        self.position += count

    def take(self, token: int, logprob: float, vocabulary: Vocabulary, forward: bool) -> None:
        """Append the model's choice and whatever the schema forces after it."""
        if self.full or token in vocabulary.stops:
            self._finish()
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.pending.append(token)
        if self.guide is not None:
            self.guide.accept(token)
        self._force(forward)
        self.full = len(self.tokens) >= self.limit or (self.guide is not None and self.guide.ended)
        if self.full and not self._spells(vocabulary):
            self._finish()

    def fork(self) -> ReplySequence:
        """The same reply so far, to go on differently."""
        guide = None if self.guide is None else self.guide.copy()
        own = {name: list(getattr(self, name)) for name in ("tokens", "logprobs", "pending")}
        return replace(self, guide=guide, **own)

    def _force(self, forward: bool) -> None:
        if self.guide is not None and forward:
            forced = self.guide.forced()
            self.pending += forced
            self.tokens += forced
            self.unscored = len(forced)

    def _spells(self, vocabulary: Vocabulary) -> bool:
        """Whether the last forced tokens spell part of a value: then they are fed, for their probability alone."""
        forced = self.tokens[len(self.tokens) - self.unscored :]
        return bool(b"".join(map(vocabulary.bytes_of, forced)).strip(b' "]},'))

    def _finish(self) -> None:
        """Close a guided reply that reached the limit. The model said none of what closes it: probability 0."""
        self.done, self.pending = True, []
        self.logprobs += [0.0] * (len(self.tokens) - len(self.logprobs))  # brackets and quotes, see `_spells`
        if len(self.tokens) < self.limit or (self.guide is not None and self.guide.ended):
            return
        self.cut = True
        self.logprobs[self.limit :] = [-math.inf] * (len(self.tokens) - self.limit)
        if self.guide is not None:
            dropped, added = self.guide.close(self.tokens)
            kept = len(self.tokens) - dropped
            self.tokens[kept:] = added
            self.logprobs[kept:] = [-math.inf] * len(added)
