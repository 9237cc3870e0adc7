"""A reply being generated: its tokens, their log-probabilities, and what is still to be fed to the model."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mllm_tailor.core.sample import Media
from mllm_tailor.generation.constrain import Guide, Vocabulary
from mllm_tailor.generation.shared_prefix_attention import Prefix
from mllm_tailor.models import Encoded
from mllm_tailor.recipe import DecodingMode


@dataclass
class ReplySequence:
    """A reply being generated."""

    index: int  # of its sample
    encoded: Encoded
    media: tuple[Media, ...]
    mode: DecodingMode  # constrained: the reply follows the task's schema, where it has one
    guide: Guide | None  # None: any token is allowed
    limit: int  # on the reply's tokens; closing a reply that was cut off may take a few more
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of `tokens`, by the model, before the schema's mask
    pending: list[int] = field(default_factory=list)  # chosen, forced or prompt tokens not yet fed to the model
    unscored: int = 0  # how many of the last `pending` tokens are forced and have no log-probability yet
    position: int = 0  # of the next token to be fed
    seconds: float = 0.0  # its share of the computing time
    full: bool = False  # the reply is complete but for the log-probabilities of forced tokens
    cut: bool = False  # at the limit
    done: bool = False
    name: str = ""  # of the field it holds, where fields are generated side by side
    framing: int = 0  # of its images, where a sample is read in several
    replica: int = 0  # which of several replies to the same prompt
    choices: list[int] = field(default_factory=list)  # indices of the tokens that were chosen, not forced
    stop: int | None = None  # the token that ended the reply, where the model chose one
    candidates: list[tuple[list[int], float]] = field(default_factory=list)  # of a beam search, see `BeamSearch`
    locate: bool = False  # whether its values are located on its pages
    prefix: Prefix | None = None  # of keys and values it shares, where these are not in the KV cache

    def begin(self, fed: int, position: int, *, feed_forced: bool) -> None:
        """Continue a prompt of which the first `fed` tokens are in the cache."""
        self.pending = self.encoded.ids[fed:].tolist()
        self.position = position
        self._force(feed_forced=feed_forced)

    def fed(self, count: int, scores: Sequence[float]) -> None:
        """Record that the first `count` pending tokens were fed; `scores` are the log-probabilities of their followers.

        The follower of the last one is the next pending token or, when none is left, the token given to `append`.
        """
        pending_scores = scores[: len(self.pending) - 1]
        self.logprobs += pending_scores[len(self.pending) - 1 - self.unscored :]
        self.pending = self.pending[count:]
        self.unscored = max(0, min(self.unscored, len(self.pending) - 1))
        self.position += count

    def append(self, token: int, logprob: float, vocabulary: Vocabulary, *, feed_forced: bool) -> None:
        """Append the chosen token and whatever the schema forces after it."""
        if self.full or token in vocabulary.stops:
            self.stop = None if self.full else token
            self._finish()
            return
        self.choices.append(len(self.tokens))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.pending.append(token)
        if self.guide is not None:
            self.guide.accept(token)
        self._force(feed_forced=feed_forced)
        self.full = len(self.tokens) >= self.limit or (self.guide is not None and self.guide.ended)
        if self.full and not self._scores_value(vocabulary):
            self._finish()

    def abandon(self) -> None:
        """End the reply where it is: nobody waits for it any more."""
        self.done, self.pending = True, []

    def fork(self) -> ReplySequence:
        """A copy that can continue differently."""
        forked = copy.copy(self)
        if self.guide is not None:
            forked.guide = self.guide.copy()
        forked.tokens, forked.logprobs = list(self.tokens), list(self.logprobs)
        forked.pending, forked.choices = list(self.pending), list(self.choices)
        return forked

    def _force(self, *, feed_forced: bool) -> None:
        if self.guide is not None and feed_forced:
            forced = self.guide.forced()
            self.pending += forced
            self.tokens += forced
            self.unscored = len(forced)

    def _scores_value(self, vocabulary: Vocabulary) -> bool:
        """Whether the last forced tokens are part of a value: then they are fed for their probability."""
        forced = self.tokens[len(self.tokens) - self.unscored :]
        return bool(b"".join(map(vocabulary.bytes_of, forced)).strip(b' "]},'))

    def _finish(self) -> None:
        """End the reply. One that reached the limit is closed as the schema requires, by tokens of probability 0."""
        self.done, self.pending = True, []
        self.logprobs += [0.0] * (len(self.tokens) - len(self.logprobs))  # brackets and quotes, see `_scores_value`
        if len(self.tokens) < self.limit or (self.guide is not None and self.guide.ended):
            return
        self.cut = True
        self.logprobs[self.limit :] = [-math.inf] * (len(self.tokens) - self.limit)
        if self.guide is not None:
            dropped, added = self.guide.close(self.tokens)
            kept = len(self.tokens) - dropped
            self.tokens[kept:] = added
            self.choices = [index for index in self.choices if index < kept]
            self.logprobs[kept:] = [-math.inf] * len(added)
