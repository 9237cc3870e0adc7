"""Constrained decoding by a JSON schema, with llguidance (https://github.com/guidance-ai/llguidance)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import llguidance.hf
import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from mllm_tailor.core.errors import ModelError

# As `json.dumps` writes the answers in training; other whitespace would only add tokens. \uXXXX escapes are excluded:
# they are never needed, and half of a surrogate pair is no text.
JSON_STYLE: Any = {  # llguidance's JsonCompileOptions
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '"\\bfnrt',
}
CLOSING_TEXTS = (b'"', b"}", b"]", b",", b"n", b"0", b" ")  # tried in this order, they end a reply soonest
MAX_CLOSING_TOKENS = 10_000  # only a schema with thousands of required fields needs more


class Vocabulary:
    """The bytes of each token, and the tokens that end a reply."""

    def __init__(self, tokenizer: Any, width: int, stops: Sequence[int]) -> None:
        """`width` is the number of logits, which may exceed the tokenizer's own count."""
        try:
            self.tokens: LLTokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=width, eos_token=list(stops))
        except ValueError as error:
            raise ModelError(
                f"this checkpoint's tokenizer is not supported ({error}) — use its fast tokenizer"
            ) from None
        self.width = width
        self.stops = frozenset(stops)

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token adds to the text; none for special tokens."""
        return b"" if self.tokens.is_special_token(token) else self.tokens.decode_bytes([token])

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of a reply, broken characters replaced."""
        return b"".join(map(self.bytes_of, tokens)).decode("utf-8", "replace")

    @cached_property
    def closing(self) -> tuple[int, ...]:
        """The tokens of CLOSING_TEXTS that the vocabulary has."""
        encoded = [self.tokens.tokenize_bytes(text) for text in CLOSING_TEXTS]
        return tuple(ids[0] for ids in encoded if len(ids) == 1)


class Grammar:
    """A JSON schema compiled for a vocabulary."""

    def __init__(self, schema: Mapping[str, Any], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._matcher = LLMatcher(
            vocabulary.tokens, LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=JSON_STYLE), log_level=0
        )
        if self._matcher.is_error():
            reason = self._matcher.get_error()
            raise ModelError(f"this task's JSON schema cannot be compiled ({reason}) — simplify its fields")

    def guide(self) -> Guide:
        """A new guide for a reply."""
        return Guide(self._matcher.deep_copy(), self.vocabulary)


class Guide:
    """The state of a reply in the grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def ended(self) -> bool:
        """Whether the reply is complete and nothing can follow."""
        return self._matcher.is_stopped()

    def copy(self) -> Guide:
        """A copy for a reply that continues differently."""
        return Guide(self._matcher.deep_copy(), self._vocabulary)

    def accept(self, token: int) -> None:
        """Append the next token, which the mask must allow."""
        self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """Append and return the tokens that must follow, as the tokenizer would split them; often none."""
        tokens = self._matcher.compute_ff_tokens()
        self._matcher.consume_tokens(tokens)
        return list(tokens)

    def fill(self, masks: NDArray[np.int32], row: int) -> None:
        """Write the allowed tokens as bits into `masks[row]`, see `allowed_tokens`."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, masks, row)

    def close(self, tokens: Sequence[int]) -> tuple[int, list[int]]:
        """End a reply that reached its limit as soon as the schema allows.

        Returns how many of its tokens to remove (those of an unfinished character or escape), and the tokens that close
        it.
        """
        written = list(map(self._vocabulary.bytes_of, tokens))
        while written and dangling(b"".join(written)) and self._matcher.rollback(1):
            written.pop()
        added: list[int] = []
        masks = llguidance.numpy.allocate_token_bitmask(1, self._vocabulary.width)
        while not self._matcher.is_stopped() and len(added) < MAX_CLOSING_TOKENS:
            step = self.forced()
            if not step:
                self.fill(masks, 0)
                allowed = allowed_tokens(masks, self._vocabulary.width)[0]
                step = [next((token for token in self._vocabulary.closing if allowed[token]), int(allowed.argmax()))]
                self.accept(step[0])
            added += step
        return len(tokens) - len(written), [token for token in added if token not in self._vocabulary.stops]


def allowed_tokens(masks: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """Bits (rows, words) int32 into booleans (rows, width)."""
    return np.unpackbits(masks.view(np.uint8), axis=1, count=width, bitorder="little").astype(bool)


def dangling(tail: bytes) -> bool:
    """Whether the bytes end inside a UTF-8 character or after a lone backslash."""
    if (len(tail) - len(tail.rstrip(b"\\"))) % 2:
        return True
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
