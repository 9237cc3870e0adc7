"""The text of a reply while it is written, in pieces that later tokens cannot change."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_tailor.generation.constrain import Vocabulary, dangling


class TextPieces:
    """Passes on what is certain: never half a character or half an escape, which closing a reply may remove."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.count = 0  # tokens seen
        self.held = b""

    def add(self, tokens: Sequence[int]) -> str:
        """The text that became certain with the tokens behind those seen before."""
        certain = b""
        for token in tokens[self.count :]:
            self.held += self.vocabulary.bytes_of(token)
            if self.held and not dangling(self.held):
                certain, self.held = certain + self.held, b""
        self.count = len(tokens)
        return certain.decode("utf-8", "replace")
