"""Text and tables for a terminal: nothing is cut, and text from documents is never read as markup or escapes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

# Controls, format characters (which include those that change the reading direction), surrogates and unassigned.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text without control characters; line breaks and tabs become spaces, the others a replacement mark.

    >>> printable("total\\x1b[31m\\n9.00")
    'total�[31m 9.00'
    """
    if text.isprintable():
        return text
    return "".join(
        " " if character in "\n\r\t" else "�" if unicodedata.category(character) in _UNPRINTABLE else character
        for character in text
    )


def plain(text: str) -> Text:
    """Text for rich that is shown literally: no markup, no emoji codes, no terminal escapes."""
    return Text(printable(text))


def plain_lines(text: str, style: str = "") -> Text:
    """As `plain`, but line breaks are kept."""
    return Text("\n".join(map(printable, text.split("\n"))), style)


class Table:
    """A table that cuts nothing, however narrow the terminal.

    The first column (names, paths, commands) is never wrapped; other cells break between words only. The table fits
    the width of the terminal where that is possible, else its lines are longer. Strings are shown as they are: never
    as markup, never as terminal escapes.
    """

    def __init__(self, title: str, *columns: str, numbers: bool = True, whole: Sequence[int] = (0,)) -> None:
        """With `numbers`, all columns but the first are aligned to the right, and only their headings are wrapped.

        Columns in `whole` are never wrapped.
        """
        self.title, self.columns, self.numbers, self.whole = title, columns, numbers, set(whole)
        self.rows: list[list[Text]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row; missing cells at its end are left empty."""
        empty = [Text() for _ in range(len(self.columns) - len(cells))]
        self.rows.append([plain(cell) if isinstance(cell, str) else cell for cell in cells] + empty)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(printable(self.title), "bold", no_wrap=True, overflow="ignore")
        header = [plain(column) for column in self.columns]
        table = RichTable(
            box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, show_header=any(self.columns)
        )
        extents = []
        for index, cells in enumerate(zip(header, *self.rows, strict=True)):
            shortest, longest = _extent(cells, whole=index in self.whole)
            body, _ = _extent(cells[1:], whole=self.numbers)
            extents.append((max(shortest, body), longest))
        spacing = 2 * (len(header) - 1)  # a space beside each column and one between two
        widths = fit_widths(extents, options.max_width - spacing)
        for index, (column, width) in enumerate(zip(header, widths, strict=True)):
            right = self.numbers and index > 0
            table.add_column(column, width=width, justify="right" if right else "left", no_wrap=index in self.whole)
        for row in self.rows:
            table.add_row(*row)
        yield from console.render(table, options.update(max_width=sum(widths) + spacing))


def _extent(cells: Sequence[Text], *, whole: bool) -> tuple[int, int]:
    """The narrowest and the widest that a column may become, in terminal cells."""
    lines = [line for cell in cells for line in cell.plain.split("\n")]
    longest = max(map(cell_len, lines), default=0)
    words = [cell_len(word) for line in lines for word in line.split()]
    return (longest if whole else max(words, default=0)), longest


def fit_widths(extents: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Widths of columns that fill at most `room` if possible: the widest that can shrink gives way first.

    >>> fit_widths([(5, 5), (3, 20), (4, 12)], 25)
    [5, 10, 10]
    """
    widths = [longest for _, longest in extents]
    while sum(widths) > room:
        flexible = [index for index, width in enumerate(widths) if width > extents[index][0]]
        if not flexible:
            break
        widths[max(flexible, key=lambda index: widths[index])] -= 1
    return widths
