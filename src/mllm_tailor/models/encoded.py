"""An encoded sample: the tensors a model reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

NO_LOSS = -100  # the label torch's cross-entropy ignores


@dataclass(frozen=True)
class Encoded:
    """A sample as model inputs; `labels` is NO_LOSS for tokens without loss."""

    ids: Tensor  # (length,) int64
    labels: Tensor  # (length,) int64
    media: Mapping[str, Tensor] = field(default_factory=dict)  # pixel_values (tiles, 3, height, width) and the like
    answer_start: int = 0  # index of the answer's first token; the length when there is no answer

    @property
    def length(self) -> int:
        """Tokens, including those of media."""
        return len(self.ids)

    @property
    def pixel_values(self) -> Tensor | None:
        """(tiles, 3, height, width) of an InternVL's images; None where there are none."""
        return self.media.get("pixel_values")
