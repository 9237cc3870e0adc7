"""Labels that do not occur in the text of their own PDF: worth a look, since they are copied from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.media.decode_worker import Decoded
from mllm_tailor.tasks.printed import is_printed, letters_and_digits

SHORTEST = 20  # letters and digits of a page below which it is taken for a scan with a stamp
USUAL = 1 / 3  # share of a field's labels from which on the text, not the labels, is at fault


def absent_labels(
    samples: Sequence[Sample],
    labels: Mapping[str, Mapping[str, Any]],
    decoded: Mapping[Media, Decoded],
    kinds: Mapping[str, str],
) -> Iterator[DataIssue]:
    """Warnings for labels that the text layer of the sample's pages does not hold; `kinds` are those of the fields.

    A sample with a page that has no text layer is left out. Of a field of which many labels are absent one warning
    is given.
    """
    checked: dict[str, int] = {}
    absent: dict[str, list[tuple[Sample, str]]] = {}
    for sample in samples:
        texts = [decoded[media].text for media in sample.media]
        if not texts or not all(len(letters_and_digits(text)) >= SHORTEST for text in texts):
            continue
        text = "\n".join(texts)
        for name, value in _values(labels.get(sample.id, {}), ""):
            checked[name] = checked.get(name, 0) + 1
            if not is_printed(value, kinds.get(name, "string"), text):
                absent.setdefault(name, []).append((sample, value))
    for name, rows in absent.items():
        if len(rows) > max(1, USUAL * checked[name]):
            problem = f"{name}: {len(rows)} of {checked[name]} labels do not occur in the text of their PDFs"
            yield DataIssue(rows[0][0].source, problem, "check a few of them", None, "warning")
            continue
        for sample, value in rows:
            problem = f"{sample.id}: {name} {value[:80]!r} does not occur in the text of the PDF"
            yield DataIssue(sample.source, problem, "check the label", sample.id, "warning")


def _values(labels: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Every filled value by field name, inner ones as `menu.price`."""
    for name, value in labels.items():
        for cell in value if isinstance(value, list) else [value]:
            if isinstance(cell, Mapping):
                yield from _values(cell, f"{prefix}{name}.")
            elif isinstance(cell, (str, int, float)) and not isinstance(cell, bool) and cell != "":
                yield prefix + name, str(cell)
