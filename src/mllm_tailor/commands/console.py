"""How commands print: results on standard output, as lines and tables (`show`) or as one JSON document (`show_json`).

A command calls both; which one prints depends on `--json`.

Nothing is wrapped or cut: a command, a path or a name can be copied from a terminal of any width. Nothing is read as
markup: names and texts come from other people's files.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from mllm_tailor.core.terminal import Table, plain_lines

Part = str | tuple[str, str]  # a text, or a text and its style

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


_json_asked_for = False


def use_json(*, as_json: bool) -> None:
    """From now on print JSON documents only, or lines and tables only."""
    global _json_asked_for
    _json_asked_for = as_json


def show(*parts: Part | Table | Group, end: str = "\n") -> None:
    """Print a table and an empty line, or a line joined from its parts.

    For example `show(("Ready.", "bold green"), f" Next: tailor run {path}")`.
    """
    if _json_asked_for:
        return
    line = Text()
    for part in parts:
        if isinstance(part, Table | Group):
            console.print(part)
            console.print()
        else:
            text, style = (part, "") if isinstance(part, str) else part
            line.append_text(plain_lines(text, style))
    if line or not parts:
        console.print(line, end=end)


def command(name: str, *words: object) -> str:
    """A command to be copied: `tailor run 'my recipe.yaml'`, quoted for the shell where a word needs it."""
    return shlex.join(["tailor", name, *map(str, words)])


def show_heading(title: str) -> None:
    """Print a title above what follows."""
    show((f"── {title}", "bold"))


def show_json(document: Any) -> None:
    """Print the whole result as one document, if that was asked for; numbers that JSON lacks become null."""
    if not _json_asked_for:
        return
    console.file.write(json.dumps(_finite(document), ensure_ascii=False, indent=2, allow_nan=False, default=str) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not -float("inf") < value < float("inf") else value
