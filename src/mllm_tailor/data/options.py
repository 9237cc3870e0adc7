"""The options of a multiple-choice question in a row: a list, an object by letter, or a column for each."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.strict_json import as_written, parse_json

OPTION_COLUMNS = ("options", "choices", "candidates", "answer_choices", "option_list")
# One column an option: `A`, `choice_a`, `Option A`, `option1`, `a0`.
_LETTERED = re.compile(r"(?i:(?P<name>options?|choices?|candidates?|opt)[\W_]*)(?P<letter>[A-Za-z])|(?P<alone>[A-Z])")
_NUMBERED = re.compile(r"(?i:(?P<name>options?|choices?|candidates?|opt|ans|a)[\W_]*)(?P<number>\d)")
NAME_KEYS, TEXT_KEYS = ("label", "key", "letter", "id"), ("text", "value", "content", "option")
_OWN_LETTER = re.compile(r"\s*\(?(?P<letter>[A-Z])\s*[.):]\s*(?P<text>.+)", re.DOTALL)


def pop_options(values: dict[str, Any], source: str, asks: Collection[str]) -> tuple[str, ...]:
    """The options of a row, taken out of its columns; empty where there are none.

    What only shares the name stays a column, and so do lettered columns of a row without one of the columns `asks`.

    Raises:
        DataError: naming the row, for options whose own letters are not A, B, C, ...
    """
    for name in OPTION_COLUMNS:
        found = values.get(name)
        texts = _texts(listed(found) if isinstance(found, str) else found, source, name)
        if texts is not None and len(texts) > 1:
            del values[name]
            return _without_letters(texts)
    names = _columns(values) if any(name in values for name in asks) else []
    return _without_letters([as_written(values.pop(name)) for name in names])


def _texts(found: Any, source: str, name: str) -> list[str] | None:
    """The texts of a list of texts, of an object by letter, or of a list of objects with a letter and a text."""
    if isinstance(found, list) and found and all(isinstance(item, Mapping) for item in found):
        pairs = [(_first(item, NAME_KEYS), _first(item, TEXT_KEYS)) for item in found]
        if any(
            text is None or set(item) - {*NAME_KEYS, *TEXT_KEYS} for item, (_, text) in zip(found, pairs, strict=True)
        ):
            return None
        found = (
            {str(letter): text for letter, text in pairs}
            if all(letter is not None for letter, _ in pairs)
            else [text for _, text in pairs]
        )
    if isinstance(found, Mapping):
        found = _in_order(found, source, name)
    if not isinstance(found, list) or not all(isinstance(text, (str, int, float)) for text in found):
        return None
    return list(map(as_written, found))


def _first(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _in_order(found: Mapping[Any, Any], source: str, name: str) -> list[Any]:
    """The texts in the order of their letters or numbers.

    Raises:
        DataError: naming the row, where a letter is missing, so that the others would get new ones.
    """
    letters = [str(key).strip().upper() for key in found]
    if not all(letter in ascii_uppercase and len(letter) == 1 for letter in letters):
        return list(found.values())
    stated = {letter: text for letter, text in zip(letters, found.values(), strict=True) if text is not None}
    if "".join(sorted(stated)) != ascii_uppercase[: len(stated)]:
        raise DataError(f"{source}: `{name}` has the letters {', '.join(stated)} — name its options A, B, C and so on")
    return [stated[letter] for letter in sorted(stated)]


def _columns(values: Mapping[str, Any]) -> list[str]:
    """The columns of a row that hold one option each, in their order; empty where there are fewer than two."""
    groups: dict[tuple[str, str], dict[int, str]] = {}
    for name in values:
        if match := _LETTERED.fullmatch(str(name)):
            letter = match["letter"] or match["alone"]
            groups.setdefault(((match["name"] or "").lower(), "letter"), {})[ord(letter.upper()) - ord("A")] = name
        elif match := _NUMBERED.fullmatch(str(name)):
            groups.setdefault((match["name"].lower(), "number"), {})[int(match["number"])] = name
    for (_, kind), columns in groups.items():
        first = 1 if kind == "number" and 0 not in columns else 0
        names: list[str] = []
        while (column := columns.get(first + len(names))) is not None and values[column] not in (None, ""):
            names.append(column)
        if len(names) > 1:
            return names
    return []


def _without_letters(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts without the letters A, B, C, ... that all of them begin with; the task writes letters itself."""
    matches = [_OWN_LETTER.fullmatch(text) for text in texts]
    if matches and all(
        match is not None and match["letter"] == letter for match, letter in zip(matches, ascii_uppercase, strict=False)
    ):
        return tuple(match["text"].strip() for match in matches if match is not None)
    return tuple(texts)


def listed(text: str) -> Any:
    """What a text of a table holds as a list or object, in JSON or as Python prints it; None where it is none."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    for read in (parse_json, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None
