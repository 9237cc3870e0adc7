"""Mark the characters in which a reply differs from its label, for HTML."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup
from rapidfuzz.distance import Levenshtein

from mllm_tailor.reporting.tables import printable

LONGEST = 2000  # characters; a runaway reply is shown up to here


def mark_difference(label: str, predicted: str) -> tuple[Markup, Markup]:
    """Both texts, escaped: what the reply lacks is `<del>` in the label, what it has too much `<ins>` in the reply.

    >>> mark_difference("9.00", "9.80")
    (Markup('9.<del>0</del>0'), Markup('9.<ins>8</ins>0'))
    """
    wanted, said = shorten(label), shorten(predicted)
    pieces = list(_pieces(wanted, said))
    return Markup("").join(one for one, _ in pieces), Markup("").join(other for _, other in pieces)


def _pieces(wanted: str, said: str) -> Iterator[tuple[Markup, Markup]]:
    for step in Levenshtein.opcodes(wanted, said):
        one, other = wanted[step.src_start : step.src_end], said[step.dest_start : step.dest_end]
        if step.tag == "equal":
            yield Markup.escape(one), Markup.escape(other)
        else:
            yield _mark("del", one), _mark("ins", other)


def _mark(tag: str, text: str) -> Markup:
    return Markup(f"<{tag}>{{}}</{tag}>").format(text) if text else Markup("")


def shorten(text: str, longest: int = LONGEST) -> str:
    """Printable, and cut with a mark that says so."""
    shown = printable(text)
    return shown if len(shown) <= longest else f"{shown[:longest]} … ({len(shown) - longest} more characters)"
