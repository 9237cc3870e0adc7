"""The systems that a run compares, each named in one place: in scores.json, and as a file of predictions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from mllm_tailor.recipe import DecodingMode

ModelState = Literal["base", "tuned"]


class BaselineKind(StrEnum):
    """Answers that are given without reading anything off the document."""

    CONSTANT = "constant"  # the most frequent training label
    MAJORITY = "majority"  # the same among training samples that agree in the `score_by` columns
    NEAREST = "nearest"  # the label of the training sample that looks most similar to the base model


@dataclass(frozen=True)
class System:
    """A model in one decoding mode, or a baseline."""

    model: ModelState | Literal["baseline"]
    mode: DecodingMode | BaselineKind

    @property
    def key(self) -> str:
        """Its key in scores.json and the stem of its file of predictions, such as `tuned_constrained`."""
        return f"{self.model}_{self.mode}"

    @classmethod
    def baseline(cls, kind: BaselineKind) -> System:
        """One of the baselines."""
        return cls("baseline", kind)


CONSTANT, MAJORITY, NEAREST = map(System.baseline, BaselineKind)
