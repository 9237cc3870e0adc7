"""How the documents of a review take part in a run: learned, or kept for the calibration."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.leaks import find_shared
from mllm_tailor.data.reviews.labels import AUDITED, REVIEW


def part_samples(samples: Sequence[Sample], dev: Sequence[Sample]) -> tuple[list[Sample], list[Sample], dict[str, str]]:
    """(learned, audited, reasons by id why others take no part) of a source, whose other samples are all learned.

    Audited documents are a chance sample of what had been accepted, so they extend the dev split, from which the
    confidence is calibrated. What a review shares with the dev split is not learned.
    """
    shared = {str(issue.sample_id): issue.problem for issue in find_shared(samples, dev, "for the calibration")}
    left_out = {sample.id: shared[sample.id] for sample in samples if REVIEW in sample.extra and sample.id in shared}
    rest = [sample for sample in samples if sample.id not in left_out]
    audited = [sample for sample in rest if sample.extra.get(AUDITED)]
    return [sample for sample in rest if not sample.extra.get(AUDITED)], audited, left_out
