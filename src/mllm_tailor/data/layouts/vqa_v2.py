"""VQAv2: a file of questions and a file of annotations, joined by `question_id`; images named after their number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import locate
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import HEADER_KEYS, objects_in, split_of
from mllm_tailor.data.keys import unread_keys
from mllm_tailor.data.layouts.answers import CHOSEN, asked, most_frequent, texts_of
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout, Roots
from mllm_tailor.media.open import pages_of

QUESTION_KEYS = {"question_id", "question", "image_id"}
ANSWER_KEYS = ("answer", "raw_answer", "answer_confidence", "answer_id")
ANNOTATION_KEYS = ("question_id", "image_id", "answers", CHOSEN, "question_type", "answer_type")


def _first(file: LabelFile, name: str) -> Mapping[str, Any]:
    value = file.head.get(name)
    return value[0] if isinstance(value, list) and value and isinstance(value[0], Mapping) else {}


def _questions(folder: Folder) -> list[LabelFile]:
    return [file for file in folder.label_files(".json") if set(_first(file, "questions")) >= QUESTION_KEYS]


def _annotations(folder: Folder) -> list[LabelFile]:
    files = folder.label_files(".json")
    return [file for file in files if {"question_id", "answers"} <= set(_first(file, "annotations"))]


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a question; a question without annotation is named."""
    answers: dict[str, Mapping[str, Any]] = {}
    for file in _annotations(folder):
        try:
            content = read_json(file.path)
            entries = objects_in(content, "annotations", str(file.path))
            yield from unread_keys(content, {"annotations", *HEADER_KEYS}, str(file.path))
            answers |= {str(entry.get("question_id")): entry for entry in entries}
        except DataError as error:
            yield DataIssue.of(error, str(file.path))
    for file in _questions(folder):
        try:
            content = read_json(file.path)
            questions = objects_in(content, "questions", str(file.path))
            yield from unread_keys(content, {"questions", "num_choices", *HEADER_KEYS}, str(file.path))
        except DataError as error:
            yield DataIssue.of(error, str(file.path))
            continue
        subset = str(content.get("data_subtype") or file.path.stem)
        split = next((split for word in subset.split("_") if (split := split_of(word))), file.split)
        roots = folder.roots(file.path)
        for number, question in enumerate(questions, 1):
            source = f"{file.path}:questions:{number}"
            try:
                annotation = answers.pop(str(question.get("question_id")), None)
                yield from unread_keys(question, QUESTION_KEYS, source, "question")
                yield from unread_keys(annotation, ANNOTATION_KEYS, source, "annotation")
                stated = annotation.get("answers") if annotation is not None else None
                for answer in stated if isinstance(stated, list) else ():
                    yield from unread_keys(answer, ANSWER_KEYS, source, "answer")
                yield _sample(question, annotation, (folder, roots, subset, split), source)
            except DataError as error:
                yield DataIssue.of(error, source)
    for identifier in answers:
        yield DataIssue(str(folder.path), f"answers to question {identifier}, which is in no file", "remove them")


def _sample(
    question: Mapping[str, Any],
    annotation: Mapping[str, Any] | None,
    place: tuple[Folder, Roots, str, str | None],
    source: str,
) -> Sample:
    folder, roots, subset, split = place
    if annotation is None:
        raise DataError(f"{source}: no annotation with its question_id — add the file of annotations, or remove it")
    number = question.get("image_id")
    numbered = [
        f"COCO_{name}_{number:012}" for name in (subset, *(root.name for root in roots)) if isinstance(number, int)
    ]
    names = [*numbered, str(number), str(number).zfill(12)]
    file = next((found for name in names if (found := folder.with_suffix(name, roots))), f"{number}.jpg")
    answers = texts_of(annotation.get("answers")) or []
    sample = Sample(
        str(question.get("question_id")),
        pages_of(locate(file, roots, source), "image"),
        split=split,
        source=source,
        extra={key: annotation[key] for key in ("question_type", "answer_type") if key in annotation},
    )
    return asked(sample, str(question.get("question")), annotation.get(CHOSEN) or most_frequent(answers), answers)


LAYOUT = Layout(
    lambda folder: bool(_questions(folder) and _annotations(folder)),
    read,
    lambda folder: [*_questions(folder), *_annotations(folder)],
)
