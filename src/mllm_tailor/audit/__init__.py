"""Labels that may be wrong: evidence from labels, page texts, copies and readings, in one ranked list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mllm_tailor.audit.agreement import find_disagreement
from mllm_tailor.audit.arithmetic import find_false_sums
from mllm_tailor.audit.columns import columns
from mllm_tailor.audit.duplicates import find_contradicting_copies
from mllm_tailor.audit.evidence import Evidence, LabelledPage, Suspect, rank
from mllm_tailor.audit.page_text import find_absent
from mllm_tailor.audit.readings import systems_readings
from mllm_tailor.audit.unusual import find_unusual
from mllm_tailor.core.sample import Prediction


def audit_labels(
    pages: Sequence[LabelledPage],
    kinds: Mapping[str, str],
    readings: Mapping[str, Sequence[Prediction]] | None = None,
) -> list[Suspect]:
    """Every suspicious label, the most suspicious first.

    `kinds` are the declared types of fields; `readings` the predictions of systems, by name, for samples on which they
    were not trained.
    """
    table = columns(pages, kinds)
    evidence = [
        *find_unusual(table),
        *find_disagreement(table),
        *find_absent(table),
        *find_contradicting_copies(pages, kinds),
        *find_false_sums(pages),
        *systems_readings(table, readings or {}),
    ]
    return rank(evidence, pages)


__all__ = ["Evidence", "LabelledPage", "Suspect", "audit_labels", "rank"]
