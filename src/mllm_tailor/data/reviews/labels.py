"""Where a document stands: its values as decided so far, which of them still need an eye, and its label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.reviews.documents import Decision, Document, Kind
from mllm_tailor.data.reviews.store import Entry, ReviewStore
from mllm_tailor.data.reviews.values import Tree, place_row, remove_row, set_value, to_fields, to_tree, value_paths
from mllm_tailor.tasks import Task

UNKNOWN = 0.5  # probability of a value that came without a confidence
DECIDING = ("confirm", "correct")
CHANGING = ("correct", "add_row", "remove_row")
AUDITED = "audited"  # marks samples whose values were all looked at because they had been accepted
REVIEW = "review"  # counts of what was decided about a sample
REJECTED = "rejected"  # the reply that the label is preferred to


def current_tree(document: Document, decisions: Sequence[Decision], schema: Mapping[str, Any]) -> Tree:
    """The values read, with everything that was decided."""
    tree: Tree = to_tree(document.reading.get("fields") or {})
    for decision in decisions:
        if decision.action in ("correct", "add_row"):
            set_value(tree, decision.field, to_tree(decision.after), schema)
            if decision.action == "add_row":
                place_row(tree, decision.field, row_below(decision.before))
        elif decision.action == "remove_row":
            remove_row(tree, decision.field)
    return tree


def row_below(before: Any) -> int | None:
    """Of an `add_row`, the number of the row above which the new one was put, as its decision holds it."""
    return int(before["above"]) if isinstance(before, Mapping) else None


def needs_eye(document: Document, kind: Kind, path: str) -> bool:
    """Whether a person is to look at a value: it is not accepted, or its document is part of the audit."""
    return kind == "audit" or document.accept.get(path) is not True


def is_decided(path: str, decisions: Sequence[Decision]) -> bool:
    """Whether somebody confirmed or corrected a value, or entered its row."""
    return any(
        (decision.field == path and decision.action in DECIDING)
        or (decision.action == "add_row" and path.startswith(f"{decision.field}."))
        for decision in decisions
    )


def undecided(entry: Entry, schema: Mapping[str, Any]) -> list[str]:
    """Paths of the values that still need an eye, in the order of the form."""
    tree = current_tree(entry.document, entry.decisions, schema)
    return [
        path
        for path in value_paths(tree, schema)
        if needs_eye(entry.document, entry.kind, path) and not is_decided(path, entry.decisions)
    ]


def rank(document: Document, schema: Mapping[str, Any]) -> tuple[Kind, float]:
    """Whether a person is to look at a document, and how many of its values are expected to be wrong."""
    tree = to_tree(document.reading.get("fields") or {})
    doubtful = [path for path in value_paths(tree, schema) if needs_eye(document, "doubtful", path)]
    worth = sum(1.0 - document.confidence.get(path, UNKNOWN) for path in doubtful)
    return ("doubtful" if doubtful else "accepted"), worth


def is_audited(document: str, share: float) -> bool:
    """Whether an accepted document is one of the `share` that is looked at all the same; its hash decides.

    >>> is_audited("0" * 64, 0.05), is_audited("f" * 64, 0.05)
    (True, False)
    """
    return int(document[:12], 16) < share * 16**12


def sample_of(document: Document, fields: Mapping[str, Any], task: Task, source: str) -> Sample:
    """A document with these values as its label; its media are those that were read."""
    asked = document.asked
    extract = task.name == "extract"
    return Sample(
        id=document.id,
        prompt=str(asked.get("prompt", "")),
        answer=None if extract else str(next(iter(fields.values()), "")),
        options=tuple(map(str, asked.get("options", ()))),
        fields=dict(fields) if extract else {},
        system=asked.get("system"),
        source=source,
    )


def check_fields(document: Document, fields: Mapping[str, Any], task: Task) -> str | None:
    """What is wrong with values as a label, or None."""
    try:
        task.labels(sample_of(document, fields, task, document.id))
    except DataError as error:
        return str(error).removeprefix(f"{document.id}: ")
    return None


def finished_fields(entry: Entry, store: ReviewStore) -> dict[str, Any]:
    """The label of a finished document: what was decided, and what was accepted."""
    fields: dict[str, Any] = to_fields(current_tree(entry.document, entry.decisions, store.schema), store.schema)
    return fields


def rejected_reply(entry: Entry) -> str | None:
    """The model's reply, where a value of it was corrected: the other half of a preference pair."""
    text = str(entry.document.reading.get("text") or "")
    corrected = any(decision.action in CHANGING and decision.before != decision.after for decision in entry.decisions)
    return text if corrected and text.strip() else None


def labelled_samples(store: ReviewStore) -> Iterator[Sample]:
    """The finished documents as samples, whose files are the copies beside the database.

    Raises:
        DataError: for a file that leads out of the folder of the database.
    """
    for entry in store.entries("done"):
        document = entry.document
        source = f"{store.path}:{document.sha256[:12]}"
        sample = sample_of(document, finished_fields(entry, store), store.task, source)
        actions: Counter[str] = Counter(decision.action for decision in entry.decisions)
        corrected = sum(actions[action] for action in CHANGING)
        extra: dict[str, Any] = {REVIEW: {"corrected": corrected, "confirmed": actions["confirm"]}}
        if (rejected := rejected_reply(entry)) is not None:
            extra[REJECTED] = rejected
        if entry.kind == "audit":
            extra[AUDITED] = True
        yield replace(sample, media=document.copied(store.folder), extra=extra)


@dataclass(frozen=True)
class AuditCount:
    """Accepted values that were looked at all the same."""

    values: int
    wrong: int


def count_audit(store: ReviewStore) -> AuditCount:
    """How many accepted values of the audited documents turned out wrong."""
    values = wrong = 0
    for entry in store.entries("done"):
        if entry.kind != "audit":
            continue
        accepted = [path for path, is_accepted in entry.document.accept.items() if is_accepted]
        changed = {item.field for item in entry.decisions if item.action in CHANGING and item.before != item.after}
        values += len(accepted)
        wrong += sum(path in changed for path in accepted)
    return AuditCount(values, wrong)
