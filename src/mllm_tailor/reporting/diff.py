"""Mark the characters in which a reply differs from its label, for HTML."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup
from rapidfuzz.distance import Levenshtein

from mllm_tailor.core.terminal import printable

LONGEST = 2000  # characters shown of a reply


def mark_difference(label: str, predicted: str) -> tuple[Markup, Markup]:
    """Both texts, escaped: characters missing from the reply are `<del>` in the label, extra ones `<ins>` in the reply.

    >>> mark_difference("9.00", "9.80")
    (Markup('9.<del>0</del>0'), Markup('9.<ins>8</ins>0'))
    """
    pieces = list(_pieces(shorten(label), shorten(predicted)))
    return Markup("").join(left for left, _ in pieces), Markup("").join(right for _, right in pieces)


def _pieces(label: str, predicted: str) -> Iterator[tuple[Markup, Markup]]:
    for step in Levenshtein.opcodes(label, predicted):
        left, right = label[step.src_start : step.src_end], predicted[step.dest_start : step.dest_end]
        if step.tag == "equal":
            yield Markup.escape(left), Markup.escape(right)
        else:
            yield _mark("del", left), _mark("ins", right)


def _mark(tag: str, text: str) -> Markup:
    return Markup(f"<{tag}>{{}}</{tag}>").format(text) if text else Markup("")  # noqa: S704


def shorten(text: str, longest: int = LONGEST) -> str:
    """Printable text of at most `longest` characters, with the number of those left out."""
    shown = printable(text)
    return shown if len(shown) <= longest else f"{shown[:longest]} … ({len(shown) - longest} more characters)"
