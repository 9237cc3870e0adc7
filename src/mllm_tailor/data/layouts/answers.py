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
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.keys import NUMBERING_KEYS
from mllm_tailor.data.layouts.base import Folder, Roots, adjusted, folder_layout, recognised
from mllm_tailor.data.layouts.columns import file_columns, read_columns

ANSWERS, CAPTIONS = ("answers",), ("captions", "sentences", "caption", "raw", "references")
CHOSEN = "multiple_choice_answer"  # VQAv2's name of the answer to learn


def recognises(first: Mapping[str, Any]) -> bool:
    """Whether a row has a question with a list of answers, or a list of captions."""
    asks = "question" in first and any(isinstance(first.get(name), list) for name in ANSWERS)
    return asks or any(texts_of(first.get(name)) for name in CAPTIONS)


def samples_of(row: Row, folder: Folder, roots: Roots) -> Iterable[Sample | DataIssue]:
    """One sample a row, with all its answers.

    Raises:
        DataError: naming the row.
    """
    question = "question" in row.values
    name = next((name for name in (ANSWERS if question else CAPTIONS) if name in row.values), "")
    answers = texts_of(row.values.get(name)) if name else []
    if answers is None:
        found = kind_of(row.values[name])
        raise DataError(f"{row.source}: `{name}` should be a list of texts, found {found} — correct this row")
    values = {key: value for key, value in row.values.items() if key not in (name, CHOSEN, "question")}
    beside = {key: values.pop(key) for key in NUMBERING_KEYS & set(values) - set(file_columns(values))}
    learned = row.values.get(CHOSEN) or most_frequent(answers)

    def answered(sample: Sample) -> Sample:
        sample = replace(sample, extra={**sample.extra, **beside})
        return asked(sample, str(row.values["question"]), learned, answers) if question else captioned(sample, answers)

    return adjusted(read_columns(Row(row.source, values, row.split), folder, roots), answered)


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
    if not isinstance(value, list):
        return None
    texts = [_text(item) for item in value]
    return texts if all(text is not None for text in texts) else None  # type: ignore[return-value]


def _text(item: Any) -> str | None:
    if isinstance(item, Mapping):
        item = next((item[key] for key in ("answer", "raw", "caption", "text") if key in item), None)
    return str(item) if isinstance(item, (str, int, float)) and not isinstance(item, bool) else None


LAYOUT = folder_layout(recognised(recognises), samples_of)
