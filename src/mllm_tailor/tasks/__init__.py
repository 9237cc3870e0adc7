"""Tasks: how a sample becomes a conversation and how a reply is read back. A new task is one file and one line here."""

from __future__ import annotations

from typing import Any

from mllm_tailor.core.registry import Entry, Registry
from mllm_tailor.tasks.base import (
    AccountingTask,
    ChoiceTask,
    ClassTask,
    DataDependentTask,
    DeclaringTask,
    FieldTask,
    RegionTask,
    Reply,
    Task,
)
from mllm_tailor.tasks.transcripts import READ_PROMPT, with_transcriptions

TASKS = Registry(
    "task",
    {
        "extract": Entry("mllm_tailor.tasks.extract:Extract", "typed fields of a document as one JSON object"),
        "answer": Entry(
            "mllm_tailor.tasks.answer:Answer", "questions about pictures, clips or recordings, in free text"
        ),
        "classify": Entry("mllm_tailor.tasks.classify:Classify", "one class out of several for each sample"),
        "choose": Entry(
            "mllm_tailor.tasks.choose:Choose", "multiple choice: the letter of one of a question's options"
        ),
        "match": Entry("mllm_tailor.tasks.match:Match", "the text that belongs to a picture, and the other way round"),
        "caption": Entry("mllm_tailor.tasks.caption:Caption", "a description in free words"),
        "ground": Entry("mllm_tailor.tasks.ground:Ground", "the box round what a phrase names"),
        "segment": Entry("mllm_tailor.tasks.segment:Segment", "the outline of what a phrase names, as a polygon"),
        "transcribe": Entry("mllm_tailor.tasks.transcribe:Transcribe", "the words spoken in a recording"),
    },
    group="mllm_tailor.tasks",
)


def open_task(name: str, settings: Any = None) -> Task:
    """A task by name, for use without a recipe."""
    task: Task = TASKS.load(name)(settings)
    return task


def field_kinds(task: Task) -> dict[str, str]:
    """The declared type of each field and column, where the task has types."""
    kinds: dict[str, str] = getattr(task, "kinds", {})
    return kinds


__all__ = [
    "READ_PROMPT",
    "TASKS",
    "AccountingTask",
    "ChoiceTask",
    "ClassTask",
    "DataDependentTask",
    "DeclaringTask",
    "FieldTask",
    "RegionTask",
    "Reply",
    "Task",
    "field_kinds",
    "open_task",
    "with_transcriptions",
]
