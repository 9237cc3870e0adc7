"""Whether the text of a page holds a labelled value, in the label's spelling or another one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mllm_tailor.tasks.values import read_amount, read_date

NUMBERS = re.compile(r"\d[\d.,' ]*\d|\d")
DATES = re.compile(r"\d{1,4}\W{0,3}(?:\d{1,2}|[^\W\d]{3,9})\W{0,3}\d{2,4}|[^\W\d]{3,9}\W{1,3}\d{1,2}\W{1,3}\d{2,4}")
NOT_PRINTED = ("choice", "boolean")  # kinds whose values need not stand on the page


def letters_and_digits(text: str) -> str:
    """What is compared of a text where punctuation, case and spaces do not matter.

    >>> letters_and_digits("No. 53-55, JALAN Sagu")
    'no5355jalansagu'
    """
    return "".join(character for character in text.casefold() if character.isalnum())


def same_meaning(value: str, kind: str, text: str) -> bool:
    """Whether an amount or a date stands on the page in another form."""
    if kind in ("amount", "number", "integer"):
        number = read_amount(value)
        return number is not None and any(read_amount(match) == abs(number) for match in NUMBERS.findall(text))
    if kind == "date":
        dates = {date for order in ("dmy", "mdy", "ymd") if (date := read_date(value, order)) is not None}
        printed = {read_date(match, order) for match in DATES.findall(text) for order in ("dmy", "mdy", "ymd")}
        return bool(dates & printed)
    return False


def is_printed(value: str, kind: str, text: str) -> bool:
    """Whether a page with this text shows the value of a field of this kind.

    >>> is_printed("1,234.50", "amount", "Total RM 1234.50"), is_printed("Kedai B", "string", "KEDAI  A")
    (True, False)
    """
    if kind in NOT_PRINTED:
        return True
    return letters_and_digits(value) in letters_and_digits(text) or same_meaning(value, kind, text)


def find_printed(value: str, kind: str, text: str) -> list[tuple[int, int]]:
    """Where a text shows a value: (first, last exclusive) characters of each occurrence, none inside a longer word.

    >>> find_printed("9.00", "amount", "Total RM9.00 of 19.00")
    [(8, 12)]
    """
    wanted = letters_and_digits(value)
    if not wanted:
        return []
    spans = [span for span in _spellings(wanted, text) if _whole(text, *span)]
    return spans or [span for span in _same_meanings(value, kind, text) if _whole(text, *span)]


def _spellings(wanted: str, text: str) -> Iterator[tuple[int, int]]:
    letters, indices = "", []
    for index, character in enumerate(text):
        for letter in letters_and_digits(character):
            letters += letter
            indices.append(index)
    start = letters.find(wanted)
    while start >= 0:
        yield indices[start], indices[start + len(wanted) - 1] + 1
        start = letters.find(wanted, start + 1)


def _same_meanings(value: str, kind: str, text: str) -> Iterator[tuple[int, int]]:
    pattern = DATES if kind == "date" else NUMBERS if kind in ("amount", "number", "integer") else None
    if pattern is not None:
        yield from (match.span() for match in pattern.finditer(text) if same_meaning(value, kind, match[0]))


def _whole(text: str, start: int, end: int) -> bool:
    """Whether neither a number nor a word goes on beyond a span; `RM9.00` holds the number 9.00."""
    return not any(
        index > 0
        and index < len(text)
        and text[index - 1].isalnum()
        and text[index].isalnum()
        and text[index - 1].isdigit() == text[index].isdigit()
        for index in (start, end)
    )
