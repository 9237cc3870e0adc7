"""Questions and answers among the columns of a row: what they are called, and lists of them in one row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

QUESTION_COLUMNS = ("question", "prompt", "query", "instruction")
ANSWER_COLUMNS = ("answer", "response", "caption", "transcript", "transcription", "text")
# Further names of the answer, in rows that ask a question; in others they are classes or fields.
ASKED_ANSWER_COLUMNS = (
    *("label", "target", "output", "ans", "gt_answer", "final_answer", "correct_answer", "reply", "completion"),
    *("answer_idx", "answer_index", "correct_choice_idx", "correct_choice", "correct_option", "gold"),
)
# Names that mean a question and an answer only together.
PAIRS = (
    *(("user", "assistant"), ("human", "gpt"), ("human", "assistant"), ("input", "output"), ("input", "response")),
    *(("question_text", "answer"), ("problem", "answer"), ("problem", "solution")),
)
SYSTEM_NAMES = ("system_prompt", "system_message")
# Columns that hold several questions, and the keys of a question and an answer in each.
ITEM_QUESTIONS, ITEM_ANSWERS = (*QUESTION_COLUMNS, "q"), ("answer", "answers", "response", "output", "label", "a")


def with_usual_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its question and answer under names of this module, whatever their case, and `system` beside them.

    >>> with_usual_names({"Question": "Which?", "Answer": "x", "Total": "9"})
    {'question': 'Which?', 'answer': 'x', 'Total': '9'}
    """
    folded = {_folded(str(name)): name for name in reversed([*values])}
    asks = next((folded[name] for name in QUESTION_COLUMNS if _is_filled(folded, name, values)), None)
    answers = (*ANSWER_COLUMNS, *ASKED_ANSWER_COLUMNS)
    answer = next((folded[name] for name in answers if name in folded), None) if asks else None
    if asks is None:
        pair = next(((asked, said) for asked, said in PAIRS if {asked, said} <= set(folded)), None)
        asks, answer = (folded[name] for name in pair) if pair else (None, None)
    if asks is None:
        return dict(values)
    names = {asks: "question"} if asks not in QUESTION_COLUMNS and answer is not None else {}
    if answer is not None and answer not in answers:
        names[answer] = "answer"
    system = next((folded[name] for name in SYSTEM_NAMES if name in folded), None)
    if system is not None and "system" not in values:
        names[system] = "system"
    return {names.get(name, name): value for name, value in values.items()}


@lru_cache(maxsize=4096)  # names recur in every row
def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name).strip("_").lower()


def _is_filled(folded: Mapping[str, str], name: str, values: Mapping[str, Any]) -> bool:
    return name in folded and isinstance(value := values[folded[name]], (str, Mapping)) and bool(value)


def question_list(values: Mapping[str, Any]) -> str | None:
    """The column that holds several questions with their answers; None where there is none."""
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            first = value[0]
            if any(isinstance(first.get(key), str) for key in ITEM_QUESTIONS) and any(
                key in first for key in ITEM_ANSWERS
            ):
                return name
    questions, answers = values.get("questions"), values.get("answers")
    if isinstance(questions, list) and isinstance(answers, list) and 0 < len(questions) == len(answers):
        return "questions" if all(isinstance(text, str) for text in questions) else None
    return None


def each_question(values: Mapping[str, Any], column: str) -> Iterator[dict[str, Any]]:
    """A row for each question of such a column, with the other columns of the row."""
    items: Sequence[Any] = values[column]
    if not isinstance(items[0], Mapping):
        items = [
            {"question": question, "answer": said} for question, said in zip(items, values["answers"], strict=True)
        ]
        values = {name: value for name, value in values.items() if name != "answers"}
    beside = {name: value for name, value in values.items() if name != column}
    for item in items:
        stated = dict(item) if isinstance(item, Mapping) else {"question": item}
        names = {
            key: usual
            for keys, usual in ((ITEM_QUESTIONS, "question"), (ITEM_ANSWERS, "answer"))
            if usual not in stated and (key := next((key for key in keys if key in stated and key not in _KNOWN), None))
        }
        yield beside | {names.get(key, key): value for key, value in stated.items()}


_KNOWN = frozenset({*QUESTION_COLUMNS, *ANSWER_COLUMNS, *ASKED_ANSWER_COLUMNS, "answers"})
