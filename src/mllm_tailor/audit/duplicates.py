"""The same page twice with different labels: equal files, nearly equal images, equal texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mllm_tailor.audit.evidence import Evidence, LabelledPage, quoted
from mllm_tailor.media.perceptual_hash import near_pairs
from mllm_tailor.scoring.text import as_text, normalise, typed_text
from mllm_tailor.tasks.printed import letters_and_digits

SAME_FILE, SAME_TEXT, NEAR_IMAGE = 0.55, 0.5, 0.4  # weights: of two labels that differ at least one is wrong
SHORTEST_TEXT = 40  # letters and digits of a page that identify it


def find_contradicting_copies(pages: Sequence[LabelledPage], kinds: Mapping[str, str]) -> Iterator[Evidence]:
    """Evidence against both labels of every field in which two copies of a page differ."""
    for first, second, weight, how in _copies(pages):
        for name in first.labels.keys() & second.labels.keys():
            values = [page.labels[name] for page in (first, second)]
            kind = kinds.get(name, "string")
            if len({normalise(typed_text(value, kind), kind) for value in values}) == 1:
                continue
            for page, other in ((first, second), (second, first)):
                reason = f"{other.id} {how} and has {quoted(other.labels[name])}"
                yield Evidence(page.id, name, "duplicate", weight, reason, as_text(other.labels[name]))


def _copies(pages: Sequence[LabelledPage]) -> Iterator[tuple[LabelledPage, LabelledPage, float, str]]:
    """Pairs of pages that show the same, each once, by the surest sign."""
    seen: set[frozenset[str]] = set()
    for key, weight, how in (
        (_file_key, SAME_FILE, "is the same file"),
        (_text_key, SAME_TEXT, "has the same text"),
    ):
        groups: dict[object, list[LabelledPage]] = defaultdict(list)
        for page in pages:
            if key(page):
                groups[(key(page), page.question)].append(page)
        for first, *others in groups.values():
            for other in others:
                seen.add(frozenset((first.id, other.id)))
                yield first, other, weight, how
    shown = [(look, page) for page in pages for look in page.looks[:1]]
    looks = [look for look, _ in shown]
    for i, j in near_pairs(looks, looks):
        first, second = shown[i][1], shown[j][1]
        if i >= j or frozenset((first.id, second.id)) in seen or _differ(first, second):
            continue
        yield first, second, NEAR_IMAGE, "looks nearly the same"


def _file_key(page: LabelledPage) -> str:
    return " ".join(page.contents)


def _text_key(page: LabelledPage) -> str:
    key = letters_and_digits(page.text or "")
    return key if len(key) >= SHORTEST_TEXT else ""


def _differ(first: LabelledPage, second: LabelledPage) -> bool:
    """Whether two pages differ in what is asked, or in their texts where both are known."""
    return first.question != second.question or (
        bool(first.text and second.text) and _text_key(first) != _text_key(second)
    )
