"""Labels against the text layer of their PDF."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.text_layer import absent_labels
from mllm_tailor.media.decode_worker import Decoded

KINDS = {"shop": "string", "total": "amount", "date": "date", "kind": "choice", "items": "list", "items.name": "string"}
TEXT = "KEDAI  A, Jalan 1\nTotal RM 1,234.50\n3 March 2019\nnasi goreng"


def test_labels_that_their_page_does_not_hold_are_named() -> None:
    """Spelling, currency and the form of dates do not matter; classes and scans are not compared."""
    right = {"shop": "Kedai A", "total": "1234.50", "date": "2019-03-03", "kind": "invoice"}
    labels = {f"{number}": {**right, "items": [{"name": "Nasi Goreng"}]} for number in range(6)}
    labels["2"] = {**right, "total": "1243.50", "items": [{"name": "nasi lemak"}]}
    labels["5"] = {**right, "shop": "Toko B"}
    pages = {name: Media("image", Path(f"{name}.pdf"), page=0) for name in labels}
    samples = [Sample(name, (media,), source=f"rows:{name}") for name, media in pages.items()]
    decoded = {media: Decoded(text="" if name == "5" else TEXT) for name, media in pages.items()}
    issues = list(absent_labels(samples, labels, decoded, KINDS))
    assert [(issue.source, issue.severity) for issue in issues] == [("rows:2", "warning")] * 2
    assert "total '1243.50'" in issues[0].problem and "items.name 'nasi lemak'" in issues[1].problem


def test_a_field_that_is_seldom_printed_is_one_warning() -> None:
    media = [Media("image", Path(f"{number}.pdf"), page=0) for number in range(6)]
    samples = [Sample(str(number), (item,), source=f"rows:{number}") for number, item in enumerate(media)]
    decoded = dict.fromkeys(media, Decoded(text=TEXT))
    labels = {str(number): {"shop": f"number {number}"} for number in range(6)}
    (issue,) = absent_labels(samples, labels, decoded, KINDS)
    assert "6 of 6" in issue.problem
