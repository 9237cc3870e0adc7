"""Which task labelled samples ask for: what their labels are decides, not how the folder is laid out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.field_types import COMMON, EMPTY, FieldGuess
from mllm_tailor.data.keys import NUMBERING_KEYS
from mllm_tailor.data.propose_boxes import box_field, box_settings, mostly_boxes
from mllm_tailor.tasks.classify import fold

CLASS_NAMES = ("label", "class", "class_name", "label_name", "target", "classification")
# Names of a class that are also names of a field among others.
WEAK_CLASS_NAMES = ("category", "tag", "species", "type", "kind", "grade", "diagnosis")
CAPTION_NAMES = ("caption", "text", "description", "sentence", "title", "summary", "alt_text")
TRANSCRIPT_NAMES = ("text", "transcript", "transcription", "sentence", "normalized_text", "words")
CLASS_TYPES = ("choice", "string", "integer", "boolean")
MAX_CLASSES = 1000
SHOWN_CLASSES = 60
LONGEST_CLASS = 60  # characters
WORDS_OF_A_CAPTION = 3  # on average, at least
# Columns that number rows and files or tell of their download (img2dataset), and so are nothing to be read off a file.
BOOKKEEPING = (NUMBERING_KEYS - {"license", "index", "url", "filepath"}) | {
    *("key", "sha256", "md5", "status", "error_message", "original_width", "original_height", "exif", "similarity"),
    *(
        "pwatermark",
        "punsafe",
        "qid",
        "caption_id",
        "sen_id",
        "ref_id",
        "ann_id",
        "annotation_id",
        "file_size",
        "src_file",
    ),
}
POLYGON_FIELD, BOX_FIELD = "polygon", "box"


@dataclass(frozen=True)
class Proposal:
    """A task, its settings, and why it is proposed."""

    task: str
    settings: dict[str, Any]
    reason: str
    used: tuple[str, ...] = ()  # fields that become labels


def propose_task(samples: Sequence[Sample], guesses: Sequence[FieldGuess]) -> Proposal | None:
    """The task that most samples can be trained for; None when they hold no labels."""
    total = len(samples)
    fields = {guess.name: guess for guess in guesses}
    asking = sum(bool(sample.prompt.strip()) for sample in samples) > total / 2
    # Of rows without an answer the check tells; few rows with one are enough to know that it is one.
    answered = any(sample.answer is not None for sample in samples)
    if asking:
        if POLYGON_FIELD in fields:
            return Proposal("segment", {}, "a phrase and its outline", (POLYGON_FIELD,))
        field = box_field(samples)
        if field is not None or mostly_boxes(samples):
            settings, opened = box_settings(samples, field)
            return Proposal("ground", settings, f"a phrase and its box{opened}", (field or BOX_FIELD,))
        if answered and sum(len(sample.options) > 1 for sample in samples) > total / 2:
            return Proposal("choose", {}, "questions with options")
        if answered:
            return Proposal("answer", {}, "questions and answers as the data have them")
    common = {name: guess for name, guess in fields.items() if guess.filled >= COMMON * total}
    meant = {name: guess for name, guess in common.items() if not _is_bookkeeping(guess)}
    return _from_fields(samples, meant or common or fields)


def _is_bookkeeping(guess: FieldGuess) -> bool:
    """Whether a column numbers rows or files, or states where they were fetched: nothing that a file shows."""
    return guess.name in BOOKKEEPING or ("://" in guess.example and guess.name.lower().endswith(("url", "uri", "link")))


def _from_fields(samples: Sequence[Sample], fields: dict[str, FieldGuess]) -> Proposal | None:
    if not fields:
        return None
    kinds = {media.kind for sample in samples for media in sample.media}
    named = {name.lower(): name for name in fields}
    if kinds == {"audio"}:
        name = next((named[name] for name in TRANSCRIPT_NAMES if name in named), None)
        if name and _is_text(fields[name]):
            return Proposal("transcribe", _label(name, "text"), "recordings and what is said in them", (name,))
    class_name = next(_classes(fields, named, len(samples)), None)
    if class_name:
        class_name = _in_words(samples, class_name, fields)
        settings = _classes_of(samples, class_name) | _label(class_name, "label")
        return Proposal("classify", settings, "a class for each sample", (class_name,))
    texts = [named[name] for name in CAPTION_NAMES if name in named and _is_text(fields[named[name]])]
    others = [guess for name, guess in fields.items() if name not in texts[:1] and guess.type != "unknown"]
    several = sum(len(sample.answers) > 1 for sample in samples) > len(samples) / 2  # captions of each sample
    if texts and (several or not others) and _words(samples, texts[0]) >= WORDS_OF_A_CAPTION:
        return Proposal("caption", _label(texts[0], "caption"), "a text for each sample", (texts[0],))
    known = tuple(name for name, guess in fields.items() if guess.type != "unknown")
    return Proposal("extract", {}, "labelled fields", known) if known else None


def _classes(fields: dict[str, FieldGuess], named: dict[str, str], total: int) -> Iterator[str]:
    """The fields that may hold a class, the likeliest first: one that is named so, else the only field."""
    alone = len(fields) == 1
    names = (*CLASS_NAMES, *(WEAK_CLASS_NAMES if len(fields) <= 2 else ()))
    for name in dict.fromkeys([*(named[name] for name in names if name in named), *(fields if alone else ())]):
        guess = fields[name]
        recurring = 2 <= guess.distinct <= min(MAX_CLASSES, guess.filled / 2)
        few = name.lower() in names or guess.distinct <= max(2, total / 10)
        if recurring and few and guess.type in CLASS_TYPES and guess.longest <= LONGEST_CLASS:
            yield name


def _in_words(samples: Sequence[Sample], name: str, fields: dict[str, FieldGuess]) -> str:
    """The field that states the same classes in words, where this one numbers them; else the field itself."""
    pairs = [(sample, str(sample.fields.get(name))) for sample in samples if sample.fields.get(name) not in EMPTY]
    if not all(code.isdecimal() for _, code in pairs):
        return name
    for other, guess in fields.items():
        words = {(code, str(sample.fields.get(other))) for sample, code in pairs}
        one_to_one = len(words) == fields[name].distinct == guess.distinct
        if (
            other != name
            and one_to_one
            and guess.type in CLASS_TYPES
            and not any(word.isdecimal() for _, word in words)
        ):
            return other
    return name


def _classes_of(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    """The classes, where they are few enough to be read in a recipe; without them the data state them at each run."""
    found = {" ".join(str(value).split()) for sample in samples if (value := sample.fields.get(name)) not in EMPTY}
    distinct = {fold(text) for text in found}
    return {"classes": sorted(found)} if len(distinct) == len(found) <= SHOWN_CLASSES else {}


def _is_text(guess: FieldGuess) -> bool:
    return guess.type in ("string", "choice")


def _words(samples: Sequence[Sample], name: str) -> float:
    counts = [len(str(value).split()) for sample in samples if (value := sample.fields.get(name))]
    return sum(counts) / max(1, len(counts))


def _label(name: str, usual: str) -> dict[str, Any]:
    return {} if name == usual else {"label": name}
