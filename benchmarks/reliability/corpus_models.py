"""Bad model folders: configurations, headers of weights, tokenizers, processors and templates of another shape."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reliability.case import Case
from reliability.mutations import REMOVED, WHOLE_DOCUMENTS, documents, paths, put, strange

PREDICT = ("predict", "--model", "model", "--recipe", "r.yaml", "d/images/0.png", "--out", "o.jsonl")
NEEDS = ("r.yaml", "d", "model")
DOCUMENTS = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json")
TEMPLATES = (
    ("divides by zero", "{{ 1/0 }}"),
    ("is not closed", "{% for m in messages %}"),
    ("is empty", ""),
    ("reads what is not there", "{{ messages[99].content }}"),
    ("calls itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    ("includes itself", "{% include 'chat_template.jinja' %}"),
    ("reads attributes", "{{ messages.__class__.__mro__ }}"),
    ("raises", "{{ raise_exception('no') }}"),
    ("works without end", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
    ("writes without end", "{{ 'x' * 9999999999 }}"),
    ("writes much", "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}"),
    ("raises a number to another", "{{ 9 ** 9999999 }}"),
    ("is no text", "\0\ud7ff"),
    ("omits images", "{% for m in messages %}{{ m.role }}{% endfor %}"),
)
HEADERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("shape null", {"shape": None}),
    ("shape below zero", {"shape": [-1, 4]}),
    ("shape of texts", {"shape": ["a"]}),
    ("shape of fractions", {"shape": [1.5, 4]}),
    ("shape too large", {"shape": [2**40, 2**40]}),
    ("unknown type", {"dtype": "Q99"}),
    ("type null", {"dtype": None}),
    ("type of a list", {"dtype": ["F32"]}),
    ("offsets null", {"data_offsets": None}),
    ("offsets reversed", {"data_offsets": [16, 0]}),
    ("offsets below zero", {"data_offsets": [-8, 8]}),
    ("offsets of texts", {"data_offsets": ["a", "b"]}),
    ("three offsets", {"data_offsets": [0, 8, 16]}),
)


def model_folders(workspace: Path) -> Iterator[Case]:
    """A model folder with one file exchanged, and what a prediction with it comes to."""
    source = workspace / "model"
    for name, content in _files(source):
        file = name.partition(":")[0]
        yield Case(name, PREDICT, {f"model/{file}": content}, NEEDS)
    for file in sorted(source.iterdir()):
        yield Case(
            f"without {file.name}",
            PREDICT,
            {},
            NEEDS,
            arrange=lambda folder, name=file.name: (folder / "model" / name).unlink(),
        )  # type: ignore[misc]
    yield Case("a pickle beside nothing", PREDICT, {"model/a.bin": b"x"}, NEEDS, arrange=_without_weights)
    yield Case("an adapter beside the weights", PREDICT, {"model/adapter_config.json": b"[]"}, NEEDS)
    yield Case("an adapter alone", PREDICT, {"model/adapter_config.json": b"{}"}, NEEDS, arrange=_without_config)


def _without_weights(folder: Path) -> None:
    (folder / "model" / "model.safetensors").unlink()


def _without_config(folder: Path) -> None:
    (folder / "model" / "config.json").unlink()


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    for file in (
        *DOCUMENTS,
        "tokenizer.json",
        "model.safetensors.index.json",
        "chat_template.json",
        "model.safetensors",
    ):
        for name, content in WHOLE_DOCUMENTS:
            yield f"{file}: whole, {name}", content
    for file in DOCUMENTS:
        document = json.loads((source / file).read_text())
        for name, changed in documents(document, file):
            yield f"{file}: {name}", json.dumps(changed).encode()
    yield from _tokenizers(json.loads((source / "tokenizer.json").read_text()))
    yield from _weights((source / "model.safetensors").read_bytes())
    for name, text in TEMPLATES:
        yield f"chat_template.jinja: {name}", text.encode("utf-8", "surrogatepass")
    for number, value in enumerate(
        (5, None, "../../x", "/etc/passwd", "a.bin", ["a"], {"a": 1}, "nowhere.safetensors")
    ):
        yield f"model.safetensors.index.json: names {number}", json.dumps({"weight_map": {"a": value}}).encode()


def _tokenizers(document: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Parts of the tokenizer that are no long tables."""
    small = put(document, ("model", "vocab"), {})
    for path in paths(small):
        if path[:2] in (("model", "vocab"), ("model", "merges")) and len(path) > 2:
            continue
        where = ".".join(map(str, path))
        for what, new in (("removed", REMOVED), ("exchanged", strange(where))):
            yield f"tokenizer.json: {where} {what}", json.dumps(put(document, path, new)).encode()


def _weights(whole: bytes) -> Iterator[tuple[str, bytes]]:
    (length,) = struct.unpack("<Q", whole[:8])
    head, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    first = next(key for key in head if key != "__metadata__")
    for name, change in HEADERS:
        yield f"model.safetensors: {name}", _stored(head | {first: head[first] | change}, body)
    others: tuple[tuple[str, Any], ...] = (
        ("one weight lost", {key: value for key, value in head.items() if key != first}),
        ("an entry null", head | {first: None}),
        ("an entry of a list", head | {first: []}),
        ("metadata of numbers", head | {"__metadata__": {"a": 5}}),
        ("metadata null", head | {"__metadata__": None}),
        ("a weight renamed", {("x" if key == first else key): value for key, value in head.items()}),
        ("no weights", {}),
        ("a list", [head]),
    )
    for name, changed in others:
        yield f"model.safetensors: {name}", _stored(changed, body)
    for number, stated in enumerate((0, 1, 2**63, 2**64 - 1, length - 1, length + 1, len(whole))):
        yield f"model.safetensors: length {number}", struct.pack("<Q", stated) + whole[8:]


def _stored(head: Any, body: bytes) -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body
