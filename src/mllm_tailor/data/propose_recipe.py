"""`tailor init`: from labelled samples to a recipe that a person can read and change."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.remote import url_of
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import group_key
from mllm_tailor.data.field_types import EMPTY, FieldGuess, guess_field, guess_fields
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.propose_task import Proposal, propose_task
from mllm_tailor.data.read import Dataset
from mllm_tailor.data.split import value_of

HELD_OUT_NAMES = ("test", "testing", "held_out", "heldout", "dev", "val", "valid", "validation", "eval")
# Columns whose values come back in other documents of the same origin: what a fair test has never seen.
GROUP_NAMES = (
    *("company", "vendor", "supplier", "merchant", "seller", "store", "shop", "issuer", "brand"),
    *("patient", "patient_id", "subject", "speaker", "speaker_id", "client_id", "author", "writer", "customer", "user"),
    *("document", "source", "site", "group"),
)
MIN_STEPS = 120  # optimizer steps below which a small set is better gone over more often
BATCH_SIZE = 16
FRACTION = 0.1
FEW_HELD_OUT = 50  # samples below which a gain of some points cannot be told from chance
HANDFUL = 20  # samples below which cross-validation is proposed, which scores all samples
FOLDS = 5


def summarise(dataset: Dataset) -> list[dict[str, Any]]:
    """One row a field (or for the question and the answer) for the terminal's table."""
    samples = dataset.samples
    guesses = guess_fields(samples)
    if any(sample.prompt for sample in samples):
        guesses = [
            guess_field("question", [sample.prompt for sample in samples], may_choose=False),
            guess_field("answer", [sample.answer for sample in samples], may_choose=False),
            *guesses,
        ]
    rows = [
        {
            "field": guess.name,
            "type": guess.type,
            "filled": f"{guess.filled} of {len(samples)}",
            "distinct": guess.distinct,
            "example": guess.example,
        }
        for guess in guesses
    ]
    return rows or [
        {"field": "(no labels)", "type": "", "filled": f"0 of {len(samples)}", "distinct": 0, "example": ""}
    ]


def propose_recipe(dataset: Dataset, issues: Sequence[DataIssue] = ()) -> str:
    """A commented recipe for labelled data, ready to be read by `read_recipe`; `issues` are the rows not read.

    Raises:
        DataError: when the data hold no labels.
    """
    samples = dataset.samples
    guesses = guess_fields(samples)
    proposal = propose_task(samples, guesses)
    if proposal is None:
        if any(sample.answer is not None for sample in samples):
            raise DataError(f"{samples[0].source}: an answer without a question, as in most rows — write the questions")
        raise DataError(f"{dataset.path}: no labels found beside the files — add fields, or questions and answers")
    epochs = max(3, min(20, math.ceil(MIN_STEPS * BATCH_SIZE / len(samples))))
    lines = [
        f"# {len(samples)} samples, layout `{dataset.layout}`. `tailor check` examines them, `tailor run` tunes.",
        "# The run is named after this file: runs/NAME.",
        *_model(samples),
        "data:",
        f"  train: {quoted(url_of(dataset.path) or str(dataset.path))}",
        *_held_out(samples, proposal),
        *_faulty(issues, samples),
        *_task(proposal, guesses, len(samples)),
        "method: {name: qlora, rank: 128, alpha: 256, parts: [language]}  # `tailor methods` lists others",
        "train:",
        f"  epochs: {epochs}  # passes over the training samples",
        f"  batch_size: {BATCH_SIZE}  # samples per optimizer step",
        "  learning_rate: 5.0e-4",
        "predict:",
        f"  max_new_tokens: {_reply_tokens(samples, proposal)}  # room for the longest label, with a quarter to spare",
    ]
    return "\n".join(lines) + "\n"


def _model(samples: Sequence[Sample]) -> list[str]:
    if {media.kind for sample in samples for media in sample.media} == {"audio"}:
        return [
            "model:  # or a model that hears, such as Qwen/Qwen2-Audio-7B-Instruct, without `units`",
            "  path: embedded",
            "  units: {features: cepstrum}  # sounds become tokens of a model that reads text",
        ]
    return ["model: embedded  # or a hub id such as OpenGVLab/InternVL3-1B-hf, or a folder"]


def _faulty(issues: Sequence[DataIssue], samples: Sequence[Sample]) -> list[str]:
    errors = [issue.source for issue in issues if issue.severity == "error"]
    bare = [] if errors else [sample.source for sample in samples if not _is_labelled(sample)]
    if not errors and not bare:
        return []
    first, what = (errors[0], "cannot be read") if errors else (bare[0], "no label")
    count = len(errors or bare)
    rows = "1 row" if count == 1 else f"{count} rows"
    has = what if errors else f"{'has' if count == 1 else 'have'} {what}"
    return [f"  faulty: refuse  # {rows} {has}, such as {_one_line(first)}; or `exclude` them"]


def _task(proposal: Proposal, guesses: Sequence[FieldGuess], total: int) -> list[str]:
    unused = [guess.name for guess in guesses if guess.name not in proposal.used]
    note = f"; not learned: {_one_line(', '.join(unused))}" if unused else ""
    if proposal.task != "extract":
        return ["task:", f"  {proposal.task}: {flow(proposal.settings)}  # {proposal.reason}{note}"]
    lines = [
        "task:",
        "  extract:",
        "    fields:  # types: string, date, amount, number, integer, boolean, choice, object, list",
    ]
    fields = [guess for guess in guesses if guess.type != "unknown"]
    for guess in fields:
        rare = "" if guess.name in proposal.used else "# "
        lines.append(f"      {rare}{quoted(guess.name)}: {flow(guess.spec())}  # {_remark(guess, total)}")
    for guess in guesses:
        if guess.type == "unknown":
            lines.append(
                f"      # {_one_line(guess.name)} is left out: no type fits values such as {_one_line(guess.example)}"
            )
    return [*lines, "    prompt: Extract {fields} as JSON."]


def _remark(guess: FieldGuess, total: int) -> str:
    left_out = guess.left_out()
    without = f"; left out: {_one_line(', '.join(left_out))}" if left_out else ""
    return f"{guess.filled} of {total} filled, {guess.distinct} distinct, such as {_one_line(guess.example)}{without}"


def _held_out(samples: Sequence[Sample], proposal: Proposal) -> list[str]:
    """The split that the data name, else whole groups, else a share; by class where classes are learned.

    Where a share would be too small for a verdict, folds.
    """
    splits = Counter(sample.split for sample in samples if sample.split and _is_labelled(sample))
    named = next((name for wanted in HELD_OUT_NAMES for name in splits if name.lower() == wanted), None)
    group = _group_column(samples, proposal)
    share: dict[str, Any] = {"fraction": FRACTION}
    if proposal.task == "classify":
        share["stratify_by"] = proposal.used[0]
    by_group = {**share, "group_by": group} if group else {}
    if named is not None and len(splits) > 1:
        size = splits[named]
        lines = [f"  held_out: {{column: split, value: {quoted(named)}}}  # {size} samples, as the data state"]
        if by_group:
            lines.append(f"  # stricter: {flow(by_group)} ({_shared(group)})")
        return [*lines, *_too_small(size)]
    size = max(1, round(FRACTION * len(samples)))
    if size < HANDFUL and len(samples) >= FOLDS:
        folds = {"folds": FOLDS} | {key: value for key, value in (by_group or share).items() if key != "fraction"}
        return [
            f"  held_out: {flow(folds)}  # {FOLDS + 1} trainings: each sample is scored once, by a model of the others",
            f"  # quicker: {flow(by_group or share)}, but {size} held-out samples are too few for a verdict",
        ]
    if by_group:
        return [f"  held_out: {flow(by_group)}  # {_shared(group)}", *_too_small(size)]
    return [f"  held_out: {flow(share)}  # samples kept for the final score", *_too_small(size)]


def _is_labelled(sample: Sample) -> bool:
    """Whether a sample can be scored: those of a `test.csv` without labels cannot."""
    return sample.answer is not None or any(value not in EMPTY for value in sample.fields.values())


def _too_small(size: int) -> list[str]:
    if size >= FEW_HELD_OUT:
        return []
    return [
        f"  # {size} held-out samples are too few for a verdict: a gain of a few points cannot be told from chance;",
        f"  # held_out: {{folds: {FOLDS}}} scores every sample once, in {FOLDS + 1} trainings",
    ]


def _shared(group: str | None) -> str:
    return f"no {_one_line(group or '')} is on both sides"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _group_column(samples: Sequence[Sample], proposal: Proposal) -> str | None:
    """A column named like an origin whose values come back, but not so few that one side would be a handful."""
    names = dict.fromkeys(str(name) for sample in samples for name in (*sample.fields, *sample.extra))
    names = {name: None for name in names if proposal.task == "extract" or name not in proposal.used}
    for name in (name for wanted in GROUP_NAMES for name in names if name.lower() == wanted):
        keys = Counter(key for sample in samples if (key := group_key(value_of(sample, name))))
        if 5 <= len(keys) < sum(keys.values()) and max(keys.values()) <= len(samples) / 3:
            return name
    return None


def _reply_tokens(samples: Sequence[Sample], proposal: Proposal) -> int:
    """An upper bound that holds for any tokenizer: none needs more tokens than the answer has bytes."""
    longest = max(len(_reply(sample, proposal).encode(errors="replace")) for sample in samples)
    return max(64, min(32_768, math.ceil(longest * 1.25 / 64) * 64))


def _reply(sample: Sample, proposal: Proposal) -> str:
    if proposal.task != "extract":
        return sample.answer or " ".join(str(sample.fields.get(name) or "") for name in proposal.used)
    labels = {name: sample.fields.get(name) for name in proposal.used}
    return json.dumps(labels, ensure_ascii=False, default=str)


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
