"""Questions with several right answers (DocVQA, TextVQA, InfographicVQA), and media with several captions.

The answer to learn is the one that the set names, else the most frequent, else the first; all of them count as right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.asked import (
    ANSWER_COLUMNS,
    ASKED_ANSWER_COLUMNS,
    QUESTION_COLUMNS,
    each_question,
    question_list,
    with_usual_names,
)
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.keys import NUMBERING_KEYS
from mllm_tailor.data.layouts.base import Folder, Roots, adjusted, folder_layout, recognised
from mllm_tailor.data.layouts.columns import file_columns, read_columns
from mllm_tailor.data.options import OPTION_COLUMNS, listed

ANSWERS = ("answers", *ANSWER_COLUMNS, *ASKED_ANSWER_COLUMNS)
CAPTIONS = ("captions", "sentences", "caption", "raw", "references", "reference_strs", "annotations_captions")
CHOSEN = "multiple_choice_answer"  # VQAv2's name of the answer to learn


def recognises(first: Mapping[str, Any]) -> bool:
    """Whether a row has a question with a list of answers, several questions, or a list of captions."""
    first = with_usual_names(first)
    if question_list(first) is not None:
        return True
    if _question_column(first) is None:
        return any(texts_of(first.get(name)) for name in CAPTIONS)
    # Of several right options no list of answers is made, each of which would count as right alone.
    return _answer_list(first) is not None and not any(first.get(name) for name in OPTION_COLUMNS)


def _answer_list(values: Mapping[str, Any]) -> str | None:
    return next((name for name in ANSWERS if _is_list(values.get(name)) and texts_of(values[name]) is not None), None)


def _question_column(values: Mapping[str, Any]) -> str | None:
    return next((name for name in QUESTION_COLUMNS if values.get(name) is not None), None)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and isinstance(listed(value), list))


def samples_of(row: Row, folder: Folder, roots: Roots) -> Iterable[Sample | DataIssue]:
    """One sample a question, with all its answers.

    Raises:
        DataError: naming the row.
    """
    values = with_usual_names(row.values)
    several = question_list(values)
    rows = [values] if several is None else each_question(values, several)
    for stated in rows:
        yield from _of_question(Row(row.source, stated, row.split), folder, roots)


def _of_question(row: Row, folder: Folder, roots: Roots) -> Iterable[Sample | DataIssue]:
    column = _question_column(row.values)
    question, others = _in_one_language(row.values.get(column or ""), column or "")
    listed_in = (
        next((name for name in CAPTIONS if name in row.values), "") if column is None else _answer_list(row.values)
    )
    if column is not None and listed_in is None:
        if "answers" not in row.values:  # a question with one answer, among others with lists
            return read_columns(row, folder, roots)
        listed_in = "answers"
    name = listed_in or ""
    answers = texts_of(row.values.get(name)) if name else []
    if answers is None:
        found = kind_of(row.values[name])
        raise DataError(f"{row.source}: `{name}` should be a list of texts, found {found} — correct this row")
    values = {key: value for key, value in row.values.items() if key not in (name, CHOSEN, column)}
    beside = {key: values.pop(key) for key in NUMBERING_KEYS & set(values) - set(file_columns(values))}
    learned = row.values.get(CHOSEN) or most_frequent(answers)

    def answered(sample: Sample) -> Sample:
        sample = replace(sample, extra={**sample.extra, **beside, **others})
        return captioned(sample, answers) if column is None else asked(sample, question, learned, answers)

    return adjusted(read_columns(Row(row.source, values, row.split), folder, roots), answered)


def _in_one_language(question: Any, column: str) -> tuple[str, dict[str, Any]]:
    """The question, and those in other languages beside it: of several, the English one, else the first."""
    if not isinstance(question, Mapping):
        return ("" if question is None else str(question)), {}
    texts = {str(name): text for name, text in question.items() if isinstance(text, str) and text}
    chosen = "en" if "en" in texts else next(iter(texts), "")
    return texts.get(chosen, ""), {f"{column}.{name}": text for name, text in texts.items() if name != chosen}


def asked(sample: Sample, question: str, learned: Any, answers: Sequence[str]) -> Sample:
    """The sample with its question, the answer to learn and all right answers."""
    return replace(sample, prompt=question, answer=None if learned is None else str(learned), answers=tuple(answers))


def captioned(sample: Sample, captions: Sequence[str]) -> Sample:
    """The sample with its captions, the first of which is learned."""
    if not captions:
        return sample
    fields = {**sample.fields, "caption": captions[0]}
    return replace(sample, answer=captions[0], answers=tuple(captions), fields=fields)


def most_frequent(answers: Sequence[str]) -> str | None:
    """The most frequent answer, the first of equals; None without answers."""
    return Counter(answers).most_common(1)[0][0] if answers else None


def texts_of(value: Any) -> list[str] | None:
    """Answers or captions as texts, from a list of texts or of objects that hold one; None for anything else."""
    if isinstance(value, Mapping):  # how Hugging Face stores a list of objects: an object of lists
        value = next((value[key] for key in ("answer", "raw", "caption", "text") if key in value), None)
    value = listed(value) if isinstance(value, str) else value  # of a table
    if not isinstance(value, list):
        return None
    texts = [_text(item) for item in value]
    return texts if all(text is not None for text in texts) else None  # type: ignore[return-value]


def _text(item: Any) -> str | None:
    if isinstance(item, Mapping):
        item = next((item[key] for key in ("answer", "raw", "caption", "text") if key in item), None)
    return str(item) if isinstance(item, (str, int, float)) and not isinstance(item, bool) else None


LAYOUT = folder_layout(recognised(recognises), samples_of)
