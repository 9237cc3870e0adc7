"""Scores as terminal tables. Strings from documents are never read as markup or terminal escapes."""

from __future__ import annotations

import unicodedata

from rich.text import Text

# Controls, format characters (which include those that turn the reading direction) and what stands for no character.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text without control characters; line breaks and tabs become spaces, the others a replacement mark.

    >>> printable("total\\x1b[31m\\n9.00")
    'total�[31m 9.00'
    """
    return "".join(
        " " if character in "\n\r\t" else "�" if unicodedata.category(character) in _UNPRINTABLE else character
        for character in text
    )


def plain(text: str) -> Text:
    """Text for rich that is shown as it is: no markup, no emoji codes, no terminal escapes."""
    return Text(printable(text))
