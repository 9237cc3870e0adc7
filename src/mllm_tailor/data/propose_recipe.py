"""`tailor init`: from labelled samples to a recipe a person can read and change."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import group_key
from mllm_tailor.data.formats import is_amount, is_date
from mllm_tailor.data.read import Dataset, read_samples
from mllm_tailor.data.split import value_of

MOST_CHOICES = 20  # more values than this are better written than chosen
MOSTLY = 0.9
HELD_OUT_NAMES = ("test", "testing", "held_out", "heldout", "dev", "val", "valid", "validation", "eval")
# Columns whose values come back in other documents of the same origin: what a fair test has never seen.
GROUP_NAMES = (
    *("company", "vendor", "supplier", "merchant", "seller", "store", "shop", "issuer", "brand"),
    *("patient", "subject", "speaker", "author", "writer", "customer", "user", "document", "source", "site", "group"),
)
LEAST_STEPS = 120  # optimizer steps below which a small set is better gone over more often
BATCH = 16


@dataclass(frozen=True)
class Guess:
    """What a field seems to be."""

    name: str
    type: str
    filled: int
    distinct: int
    longest: int
    example: str
    choices: tuple[str, ...] = ()
    items: Mapping[str, str] = field(default_factory=dict)  # the fields of a list's entries

    def spec(self) -> Any:
        """How a recipe declares it."""
        if self.type == "choice":
            return {"type": "choice", "choices": list(self.choices)}
        if self.type == "list":
            return {"type": "list", "items": dict(self.items)}
        if self.longest > 200:
            return {"type": self.type, "max_length": min(4000, math.ceil(self.longest * 1.25 / 100) * 100)}
        return self.type


def summarise(dataset: Dataset) -> list[dict[str, Any]]:
    """One row a field (or for the question and the answer) for the terminal's table."""
    guesses = guess_fields(dataset.samples)
    if _asks(dataset.samples):
        guesses = [
            _guess("question", [sample.prompt for sample in dataset.samples], may_choose=False),
            _guess("answer", [sample.answer for sample in dataset.samples], may_choose=False),
            *guesses,
        ]
    total = len(dataset.samples)
    rows = [
        {
            "field": guess.name,
            "type": guess.type,
            "filled": f"{guess.filled} of {total}",
            "distinct": guess.distinct,
            "example": guess.example,
        }
        for guess in guesses
    ]
    return rows or [{"field": "(no labels)", "type": "", "filled": f"0 of {total}", "distinct": 0, "example": ""}]


def guess_fields(samples: Sequence[Sample]) -> list[Guess]:
    """The labelled fields and their likely types, in the data's order; nested objects are no field."""
    names = dict.fromkeys(str(name) for sample in samples for name in sample.fields)
    columns = {name: [sample.fields.get(name) for sample in samples] for name in names}
    guesses = [_guess(name, values) for name, values in columns.items()]
    return [guess for guess in guesses if guess.type != "object" and guess.filled]


def _guess(name: str, values: Sequence[Any], *, may_choose: bool = True) -> Guess:
    filled = [value for value in values if value not in (None, "", [], {})]
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in filled]
    counts = Counter(texts)
    kind, items = _type(filled, texts)
    few = len(counts) <= min(MOST_CHOICES, len(texts) / 10)
    choices = tuple(sorted(counts)) if may_choose and kind == "string" and few and len(counts) > 1 else ()
    if choices and any(text != text.strip() for text in choices):
        choices = ()  # a choice is matched whole, and labels are stripped
    longest = max(map(len, texts), default=0)
    example = counts.most_common(1)[0][0] if counts else ""
    return Guess(name, "choice" if choices else kind, len(filled), len(counts), longest, example[:60], choices, items)


def _type(filled: Sequence[Any], texts: Sequence[str]) -> tuple[str, dict[str, str]]:
    if filled and all(isinstance(value, list) for value in filled):
        entries = [entry for value in filled for entry in value]
        if entries and all(isinstance(entry, dict) and entry for entry in entries):
            names = dict.fromkeys(str(name) for entry in entries for name in entry)
            inner = {name: _scalar([entry[name] for entry in entries if entry.get(name) is not None]) for name in names}
            return ("object", {}) if "object" in inner.values() else ("list", inner)
    return _scalar(filled, texts), {}


def _scalar(filled: Sequence[Any], texts: Sequence[str] | None = None) -> str:
    if any(isinstance(value, (dict, list)) for value in filled):
        return "object"
    if filled and all(isinstance(value, bool) for value in filled):
        return "boolean"
    if filled and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in filled):
        return "integer" if all(isinstance(value, int) for value in filled) else "number"
    texts = texts if texts is not None else [str(value) for value in filled]
    for kind, check in (("date", is_date), ("amount", _is_sum)):
        if texts and sum(map(check, texts)) >= MOSTLY * len(texts):
            return kind
    return "string"


def _is_sum(text: str) -> bool:
    """An amount with cents or a currency: a bare whole number is as likely a code."""
    return is_amount(text) and re.search(r"[.,]\d|[^\d\s.,()-]", text) is not None


def _asks(samples: Sequence[Sample]) -> bool:
    return sum(bool(sample.prompt and sample.answer is not None) for sample in samples) > len(samples) / 2


def propose_recipe(path: str | Path) -> str:
    """A commented recipe for the labelled data at `path`, ready to be read by `read_recipe`.

    Raises:
        DataError: when the data cannot be read or holds no labels.
    """
    dataset = read_samples(path, on_issue=lambda fault: None)
    samples = dataset.samples
    guesses = guess_fields(samples)
    if not _asks(samples) and not guesses:
        raise DataError(f"{path}: no labels found beside the files — add fields, or questions and answers")
    task = _answer_task() if _asks(samples) else _extract_task(guesses)
    epochs = max(3, min(20, math.ceil(LEAST_STEPS * BATCH / len(samples))))
    lines = [
        f"# {len(samples)} samples, layout `{dataset.layout}`. `tailor check` examines them, `tailor run` tunes.",
        "# The run is named after this file: runs/NAME.",
        "model: embedded  # or a hub id such as OpenGVLab/InternVL3-1B-hf, or a folder",
        "data:",
        f"  train: {quoted(str(path))}",
        *_held_out(samples),
        *task,
        "method: {name: qlora, rank: 128, alpha: 256, parts: [language]}  # `tailor methods` lists others",
        "train:",
        f"  epochs: {epochs}  # passes over the training samples",
        f"  batch_size: {BATCH}  # samples per optimizer step",
        "  learning_rate: 5.0e-4",
        "predict:",
        f"  max_new_tokens: {_reply_tokens(samples)}  # room for the longest label, with a quarter to spare",
    ]
    return "\n".join(lines) + "\n"


def _answer_task() -> list[str]:
    return ["task:", "  answer: {}  # questions and answers as the data has them"]


def _extract_task(guesses: Sequence[Guess]) -> list[str]:
    lines = [
        "task:",
        "  extract:",
        "    fields:  # types: string, date, amount, number, integer, boolean, choice, list",
    ]
    lines += [f"      {quoted(guess.name)}: {flow(guess.spec())}  # {_remark(guess)}" for guess in guesses]
    return [*lines, "    prompt: Extract {fields} as JSON."]


def _remark(guess: Guess) -> str:
    return f"{guess.filled} filled, {guess.distinct} distinct, such as {_one_line(guess.example)}"


def _held_out(samples: Sequence[Sample]) -> list[str]:
    """The part the data itself keeps, else whole groups, else a share."""
    parts = Counter(sample.split for sample in samples if sample.split)
    kept = next((name for wanted in HELD_OUT_NAMES for name in parts if name.lower() == wanted), None)
    grouped = _group_column(samples)
    by_group = f"  held_out: {{fraction: 0.1, group_by: {quoted(grouped)}}}" if grouped else ""
    if kept is not None and len(parts) > 1:
        lines = [f"  held_out: {{column: split, value: {quoted(kept)}}}  # {parts[kept]} samples, as the data says"]
        if by_group:
            way = by_group.strip().removeprefix("held_out: ")
            lines.append(f"  # stricter: {way} ({_shared(grouped)})")
        return lines
    if by_group:
        return [f"{by_group}  # {_shared(grouped)}"]
    return ["  held_out: {fraction: 0.1}  # samples kept for the final score"]


def _shared(group: str | None) -> str:
    return f"no {_one_line(group or '')} is on both sides"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _group_column(samples: Sequence[Sample]) -> str | None:
    """A column named like an origin whose values come back, but not so few that one side would be a handful."""
    names = dict.fromkeys(str(name) for sample in samples for name in (*sample.fields, *sample.extra))
    for name in (name for wanted in GROUP_NAMES for name in names if name.lower() == wanted):
        keys = Counter(key for sample in samples if (key := group_key(value_of(sample, name))))
        if 5 <= len(keys) < sum(keys.values()) and max(keys.values()) <= len(samples) / 3:
            return name
    return None


def _reply_tokens(samples: Sequence[Sample]) -> int:
    """An upper bound that holds for any tokenizer: none needs more tokens than the answer has bytes."""
    longest = max(
        len(
            (sample.answer or json.dumps(dict(sample.fields), ensure_ascii=False, default=str)).encode(errors="replace")
        )
        for sample in samples
    )
    return max(64, min(32_768, math.ceil(longest * 1.25 / 64) * 64))


def quoted(text: str) -> str:
    """A text as YAML that reads back as the same text: bare when that is safe."""
    reserved = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
    if re.fullmatch(r"[A-Za-z_][\w-]*", text, re.ASCII) and text.lower() not in reserved:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9).strip()


def flow(value: Any) -> str:
    """A nested value on one line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(str(key))}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(inner) for inner in value) + "]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)
