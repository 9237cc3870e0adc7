"""Conversations by other names: other keys and shapes, files named in the text, weights in the words of other tools."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from fixtures.data_examples import image
from fixtures.label_files import write

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import DataIssue, read_samples
from mllm_tailor.tasks import open_task

A, B, V = "a.png", "b.png", "v.mp4"
EMBEDDED = b64encode(image("e")).decode()
ASKED = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "x"}]
CHAT = [{"role": "user", "content": "<image>Which?"}, {"role": "assistant", "content": "x"}]
PART = {"role": "user", "content": [{"type": "image", "image": A}, {"type": "text", "text": "Which?"}]}
REPLY = {"role": "assistant", "content": "x"}
WORSE = {"role": "assistant", "content": "y"}


def read(folder: Path, rows: Any, name: str = "rows.jsonl") -> tuple[list[Sample], str]:
    write(folder, {A: image(A), B: image(B), name: rows})
    issues: list[DataIssue] = []
    samples = read_samples(folder, on_issue=issues.append).samples
    return list(samples), "\n".join(map(str, issues))


def shown(conversation: Conversation) -> list[str]:
    return [
        (part.path.name if part.path else "embedded") if isinstance(part, Media) else part
        for part in conversation.messages[-1].content
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"image": A, "conversation": ASKED},
        {"image": A, "dialog": CHAT},
        {"image": A, "conversations": json.dumps(ASKED)},
        {"img_path": A, "conversations": ASKED},
        {"file_name": A, "messages": json.dumps(CHAT)},
        {"image": A, "conversation": [{"human": "Which?", "gpt": "x"}]},
        {"conversations": [{"from": "user", "value": f"Picture 1: <img>{A}</img>\nWhich?"}, ASKED[1]]},
        {"image": {"<image_00>": A}, "conversations": [{"role": "user", "content": "<image_00>\nWhich?"}, REPLY]},
        [PART, REPLY],
        {"contents": [{"role": "user", "parts": [{"fileData": {"mimeType": "image/png", "fileUri": A}},
         {"text": "Which?"}]}, {"role": "model", "parts": [{"text": "x"}]}]},
        {"input": {"messages": [PART]}, "preferred_output": [REPLY], "non_preferred_output": [WORSE]},
        {"messages": [{**PART, "loss_weight": 0.0}, {**REPLY, "loss_weight": 1.0}]},
        {"messages": [{**PART, "content": [{"type": "image", "base64": EMBEDDED, "index": 0}, "Which?"]}, REPLY]},
        {"image": EMBEDDED, "conversations": ASKED},
    ],
)  # fmt: skip
def test_a_conversation_by_another_name(row: Any, tmp_path: Path) -> None:
    (sample,), said = read(tmp_path, [row])
    file = A if sample.media[0].path else "embedded"
    assert shown(open_task("answer").phrase(sample)) == [file, "Which?"] and sample.answer == "x"
    assert "key" not in said


def test_files_in_texts_keep_their_place(tmp_path: Path) -> None:
    turns = [
        {"from": "user", "value": f"<img>{B}</img>First?"},
        {"from": "assistant", "value": "x"},
        {"from": "user", "value": f"Like <img>{A}</img>?"},
        {"from": "assistant", "value": "y"},
    ]
    (first, second), _ = read(tmp_path, [{"conversations": turns}])
    assert [media.path.name for media in first.media if media.path] == [B]
    assert shown(open_task("answer").phrase(second)) == ["Like ", A, "?"]


@pytest.mark.parametrize(("key", "context"), [("loss_scale", 0.0), ("training", False), ("loss_weight", 0)])
def test_answers_of_no_weight_are_context(key: str, context: Any, tmp_path: Path) -> None:
    second = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "y"}]
    (sample,), said = read(tmp_path, [{"messages": [PART, {**REPLY, key: context}, *second]}])
    assert sample.answer == "y" and [turn.text for turn in sample.history] == ["Which?", "x"] and not said.count("key")


def test_an_image_mark_stands_for_the_only_video(tmp_path: Path) -> None:
    (tmp_path / V).write_bytes(b"not decoded here" * 8)
    (sample,), _ = read(tmp_path, [{"video": V, "conversations": ASKED}])
    assert [media.kind for media in sample.media] == ["video"] and sample.prompt == "Which?"


def test_system_texts_beside_the_messages(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be right."}]
    gemini = {"systemInstruction": {"parts": [{"text": "Be brief."}]}, "contents": [
        {"role": "user", "parts": [{"text": "Which?"}]}, {"role": "model", "parts": [{"text": "x"}]}]}  # fmt: skip
    (first, second), _ = read(tmp_path, [{"system": parts, "messages": [PART, REPLY]}, gemini])
    assert (first.system, second.system) == ("Be brief.\n\nBe right.", "Be brief.")


@pytest.mark.parametrize("part", [{"functionCall": {"name": "f"}}, {"fileData": {"fileUri": "gs://bucket/a.png"}}])
def test_parts_of_gemini_that_cannot_be_read_are_named(part: Any, tmp_path: Path) -> None:
    row = {"contents": [{"role": "user", "parts": [part]}, {"role": "model", "parts": [{"text": "x"}]}]}
    with pytest.raises(DataError, match=r"rows\.jsonl:1.*(functionCall|gs://)"):
        read(tmp_path, [row])


@pytest.mark.parametrize(
    "objects", [[{"caption": "cup", "bbox": [16, 16, 32, 32], "bbox_type": "real", "image": 0}], None]
)
def test_objects_in_older_forms(objects: Any, tmp_path: Path) -> None:
    stated = json.dumps(objects or {"ref": ["cup"], "bbox": [[16, 16, 32, 32]]})
    row = {"query": "<image>Find <ref-object>", "response": "<bbox>", "images": [A], "objects": stated}
    (sample,), _ = read(tmp_path, [row])
    assert (sample.prompt, sample.answer) == ("Find <ref>cup</ref>", "<box>[[250, 250, 500, 500]]</box>")
