"""Hold a reply to a JSON schema, token by token, with llguidance (https://github.com/guidance-ai/llguidance)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import llguidance.hf
import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from mllm_tailor.core.errors import ModelError

# As `json.dumps` writes answers for training; other whitespace would only be more tokens to get wrong. \uXXXX is left
# out: it is never needed, and half of a surrogate pair is no text.
JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '"\\bfnrt',
}
CLOSING = (b'"', b"}", b"]", b",", b"n", b"0", b" ")  # in this order, whatever the schema allows ends soonest
LONGEST_CLOSING = 10_000  # tokens; only a schema with thousands of required fields needs more


class Vocabulary:
    """The bytes behind each token, and the tokens that end a reply."""

    def __init__(self, tokenizer: Any, width: int, stops: Sequence[int]) -> None:
        """`width` is the number of logits, which may exceed the tokenizer's own count."""
        try:
            self.tokens: LLTokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=width, eos_token=list(stops))
        except ValueError as error:
            raise ModelError(f"this checkpoint's tokenizer cannot be used here ({error}) — use its fast one") from None
        self.width = width
        self.stops = frozenset(stops)

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to the text; nothing for special tokens."""
        return b"" if self.tokens.is_special_token(token) else self.tokens.decode_bytes([token])

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of a reply, broken characters replaced."""
        return b"".join(map(self.bytes_of, tokens)).decode("utf-8", "replace")

    @cached_property
    def closing(self) -> tuple[int, ...]:
        """The tokens of CLOSING, as far as the vocabulary has them."""
        ids = [self.tokens.tokenize_bytes(text) for text in CLOSING]
        return tuple(found[0] for found in ids if len(found) == 1)


class Grammar:
    """A JSON schema made ready for one vocabulary."""

    def __init__(self, schema: Mapping[str, Any], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._matcher = LLMatcher(
            vocabulary.tokens, LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=JSON_STYLE), log_level=0
        )
        if self._matcher.is_error():
            fault = self._matcher.get_error()
            raise ModelError(f"this task's JSON schema cannot be followed ({fault}) — simplify its fields")

    def guide(self) -> Guide:
        """A fresh guide for one reply."""
        return Guide(self._matcher.deep_copy(), self.vocabulary)


class Guide:
    """Where one reply stands in the grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def ended(self) -> bool:
        """Whether the reply is complete and nothing can follow."""
        return self._matcher.is_stopped()

    def copy(self) -> Guide:
        """A guide of its own for a reply that goes on differently from here."""
        return Guide(self._matcher.deep_copy(), self._vocabulary)

    def accept(self, token: int) -> None:
        """Take the next token, one the mask allows."""
        self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """Take and return the tokens that must follow, in the tokenizer's own division; often none."""
        tokens = self._matcher.compute_ff_tokens()
        self._matcher.consume_tokens(tokens)
        return list(tokens)

    def fill(self, masks: np.ndarray, line: int) -> None:
        """Write the allowed tokens as bits into `masks[line]`, see `allowed_tokens`."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, masks, line)

    def close(self, tokens: Sequence[int]) -> tuple[int, list[int]]:
        """End a reply that ran out of tokens as soon as the schema allows.

        Returns how many of its tokens to take back (those that began a character or an escape they cannot finish), and
        the tokens that close it.
        """
        written = list(map(self._vocabulary.bytes_of, tokens))
        while written and _dangling(b"".join(written)) and self._matcher.rollback(1):
            written.pop()
        added: list[int] = []
        masks = llguidance.numpy.allocate_token_bitmask(1, self._vocabulary.width)
        while not self._matcher.is_stopped() and len(added) < LONGEST_CLOSING:
            step = self.forced()
            if not step:
                self.fill(masks, 0)
                allowed = allowed_tokens(masks, self._vocabulary.width)[0]
                step = [next((token for token in self._vocabulary.closing if allowed[token]), int(allowed.argmax()))]
                self.accept(step[0])
            added += step
        return len(tokens) - len(written), [token for token in added if token not in self._vocabulary.stops]


def allowed_tokens(masks: np.ndarray, width: int) -> np.ndarray:
    """Bits (rows, words) int32 into booleans (rows, width)."""
    return np.unpackbits(masks.view(np.uint8), axis=1, count=width, bitorder="little").astype(bool)


def _dangling(tail: bytes) -> bool:
    """Whether the bytes end inside a UTF-8 character or behind a lone backslash."""
    if (len(tail) - len(tail.rstrip(b"\\"))) % 2:
        return True
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
