"""Values and bytes that are not what a reader expects, and where to put them; all follow from a name."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

STRANGE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    1e300,
    2**70,
    "",
    "x",
    "..",
    "[/red]\x1b[2J",
    "é\n|,\t#;=",
    "9" * 400,
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"a": {"b": [1, "c"]}},
)


def strange(name: str) -> Any:
    """One of the strange values; which one follows from the name."""
    return random.Random(name).choice(STRANGE)


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a document; of a list only its first two entries."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*before, key)
        yield from paths(inner, (*before, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a document with another value at `path`; the entry is removed where `new` is `REMOVED`."""
    key, *rest = path
    items = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        items[key] = put(items[key], tuple(rest), new)
    elif new is REMOVED:
        del items[key]
    else:
        items[key] = new
    return items


REMOVED = object()


def documents(document: Any, name: str, each: int = 1) -> Iterator[tuple[str, Any]]:
    """`(what was changed, changed document)`: every value exchanged `each` times, and every entry removed."""
    for path in paths(document):
        where = ".".join(map(str, path))
        for number in range(each):
            yield f"{where}#{number}", put(document, path, strange(f"{name} {where} {number}"))
        yield f"{where} removed", put(document, path, REMOVED)


WHOLE_DOCUMENTS: tuple[tuple[str, bytes], ...] = (
    ("empty", b""),
    ("blank", b" \n"),
    ("null", b"null"),
    ("list", b"[]"),
    ("object", b"{}"),
    ("number", b"7"),
    ("text", b'"x"'),
    ("not UTF-8", b"\xff\xfe\x00x"),
    ("zero bytes", bytes(64)),
    ("nested", b"[" * 3000 + b"]" * 3000),
    ("half", b'{"a": '),
    ("NaN", b'{"a": NaN}'),
    ("twice", b'{"a": 1, "a": 2}'),
    ("surrogate", b'{"a": "\\ud800"}'),
    ("long number", b'{"a": ' + b"9" * 5000 + b"}"),
    ("list of numbers", b"[1, 2]"),
    ("list of lists", b"[[1], [2]]"),
)


def damaged(content: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """A file cut off, flipped, zeroed and prolonged, at places that follow from the name."""
    chance, size = random.Random(name), len(content)
    for share in (0.0, 0.02, 0.5, 0.99):
        yield f"cut to {share:.0%}", content[: int(share * size)]
    for number in range(3):
        at = chance.randrange(size)
        yield f"flipped {number}", content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
    for number in range(2):
        start = chance.randrange(min(size, 64))
        yield f"zeroed {number}", content[:start] + bytes(min(16, size - start)) + content[start + 16 :]
    at = chance.randrange(size)
    yield "middle lost", content[:at] + content[at + 40 :]
    yield "prolonged", content + bytes(chance.randrange(256) for _ in range(100))
    yield "twice", content + content


def lines(content: str, name: str, count: int) -> Iterator[tuple[str, str]]:
    """A text of lines with a value exchanged where they are JSON, else with some characters cut or exchanged."""
    for number in range(count):
        chance = random.Random(f"{name} {number}")
        yield f"damage {number}", _line_damaged(content, chance)


def _line_damaged(content: str, chance: random.Random) -> str:
    rows = content.splitlines(keepends=True)
    index, whole = chance.randrange(len(rows)), chance.random() < 0.4
    try:
        value = json.loads(content if whole else rows[index])
        changes = list(paths(value))
        path = chance.choice(changes)
    except (ValueError, IndexError):
        at = chance.randrange(max(1, len(content)))
        new = chance.choice(("", "\0", '"', "{", "\t", "|", "=", "\n", "\ufeff", "\x85", ",,,", "\\ud800"))
        return content[:at] + new + content[at + chance.randrange(9) :]
    changed = put(value, path, REMOVED if chance.random() < 0.2 else chance.choice(STRANGE))
    text = json.dumps(changed, ensure_ascii=chance.random() < 0.5)
    return text if whole else "".join([*rows[:index], text + "\n", *rows[index + 1 :]])
