"""Evidence that a label is wrong, and one ranked list made of it.

Every check yields `Evidence` with a weight: the probability that the label is wrong, judged by this check alone. The
weights of different checks on one value are combined as independent causes of suspicion (noisy or): 1 - prod(1 - w).
Of several findings of one check the strongest counts. The result ranks values; it is no calibrated probability.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mllm_tailor.scoring.text import as_text

PRIOR = 0.03  # share of wrong labels that checks assume; annotated document sets have 1 to 5 %


@dataclass(frozen=True)
class LabelledPage:
    """A sample as the checks see it: its labels, and what else is known of its page."""

    id: str
    labels: Mapping[str, Any]
    source: str = ""
    group: str | None = None
    question: str = ""  # what is asked, where samples have their own
    text: str | None = None  # of the page: a transcript, or the text layer of a PDF
    contents: tuple[str, ...] = ()  # checksum of each file
    looks: tuple[str, ...] = ()  # perceptual hash of each image


@dataclass(frozen=True)
class Evidence:
    """What one check holds against one label."""

    id: str
    field: str
    check: str  # reading, page text, duplicate, agreement, format, arithmetic, empty
    weight: float  # 0..1
    reason: str
    suggestion: str = ""  # a value that may be the right one


@dataclass(frozen=True)
class Suspect:
    """A label that may be wrong, with all that speaks against it, the strongest first."""

    id: str
    field: str
    label: Any
    source: str
    suspicion: float  # 0..1
    evidence: tuple[Evidence, ...] = ()

    @property
    def suggestion(self) -> str:
        """The proposal of the strongest evidence that has one."""
        return next((item.suggestion for item in self.evidence if item.suggestion), "")

    def row(self) -> dict[str, Any]:
        """Plain values for audit.jsonl."""
        return {
            "id": self.id,
            "field": self.field,
            "label": self.label,
            "suspicion": round(self.suspicion, 4),
            "suggestion": self.suggestion,
            "reasons": [
                {"check": item.check, "weight": round(item.weight, 4), "reason": item.reason} for item in self.evidence
            ],
            "source": self.source,
        }


def rank(evidence: Iterable[Evidence], pages: Iterable[LabelledPage]) -> list[Suspect]:
    """Suspects, the most suspicious first; ties by id and field, so that the order never depends on chance."""
    strongest: dict[tuple[str, str], dict[str, Evidence]] = defaultdict(dict)
    for item in evidence:
        known = strongest[(item.id, item.field)].get(item.check)
        if known is None or item.weight > known.weight:
            strongest[(item.id, item.field)][item.check] = item
    by_id = {page.id: page for page in pages}
    suspects = []
    for (identifier, name), checks in strongest.items():
        page = by_id[identifier]
        reasons = tuple(sorted(checks.values(), key=lambda item: (-item.weight, item.check)))
        suspicion = 1 - math.prod(1 - item.weight for item in reasons)
        suspects.append(Suspect(identifier, name, page.labels.get(name), page.source, suspicion, reasons))
    return sorted(suspects, key=lambda suspect: (-suspect.suspicion, suspect.id, suspect.field))


def quoted(value: Any, longest: int = 70) -> str:
    """A value in a sentence."""
    text = as_text(value)
    return f"“{text if len(text) <= longest else text[: longest - 1] + '…'}”"
