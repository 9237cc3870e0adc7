"""What an endpoint is sent: the system text, earlier turns, files in their place, options and boxes, as trained."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.data_examples import image
from fixtures.label_files import write
from PIL import Image

from mllm_tailor.data import read_samples
from mllm_tailor.generation import read_inputs
from mllm_tailor.media.open import open_image
from mllm_tailor.serving.openai_client import as_messages
from mllm_tailor.tasks import Task, open_task

A, B = "a.png", "b.png"


def sent(task: Task, row: dict[str, Any], folder: Path, system: str | None = None) -> list[dict[str, Any]]:
    """What an endpoint is sent of a labelled row; files stand as their names."""
    files = {A: image(A), B: image(B)}
    (sample,) = read_samples(write(folder, {**files, "rows.jsonl": [row]})).samples
    messages = as_messages(task.phrase(sample.unlabelled()), system)
    names = {f"data:image/png;base64,{base64.b64encode(data).decode()}": name for name, data in files.items()}
    text = json.dumps(messages)
    for address, name in names.items():
        text = text.replace(address, name)
    return list(json.loads(text))


def shown(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": name}}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_turns_files_and_system_text_are_sent_in_order(tmp_path: Path) -> None:
    row = {"images": [A, B], "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First <image>?"}, {"role": "assistant", "content": "x"},
        {"role": "user", "content": "Like <image> again?"}, {"role": "assistant", "content": "y"}]}  # fmt: skip
    folder = write(tmp_path, {A: image(A), B: image(B), "rows.jsonl": [row]})
    last = next(sample for sample in read_samples(folder).samples if sample.answer == "y")
    messages = as_messages(open_task("answer").phrase(last.unlabelled()), "the run's")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert (messages[0]["content"], messages[2]["content"]) == ("Be brief.", "x")
    kinds = [[part["type"] for part in message["content"]] for message in messages[1::2]]
    assert kinds == [["text", "image_url", "text"]] * 2 and messages[3]["content"][2] == said(" again?")


def test_options_and_phrases_are_sent_in_the_words_of_the_task(tmp_path: Path) -> None:
    row = {"image": A, "question": "Which?", "options": ["p", "q"], "answer": "q", "system": "Be right."}
    (system, question) = sent(open_task("choose"), row, tmp_path / "0", "the run's")
    assert system == {"role": "system", "content": "Be right."}
    assert question["content"][0] == shown(A) and "A. p\nB. q" in question["content"][1]["text"]
    row = {"image": [A, B], "question": "the cup", "box": [1, 2, 300, 400], "image_index": 0}
    (system, question) = sent(open_task("ground"), row, tmp_path / "1", "the run's")
    assert system["content"] == "the run's" and question["content"][:2] == [shown(A), shown(B)]
    assert question["content"][2] == said("Where is <ref>the cup</ref>?")


@pytest.mark.parametrize("kind", ["turned", "transparent", "plain"])
def test_pixels_are_sent_as_they_were_trained(kind: str, tmp_path: Path) -> None:
    pixels = Image.open(io.BytesIO(image("p")))
    exif = Image.Exif()
    exif[0x112] = 6
    if kind == "turned":
        pixels.save(tmp_path / A, exif=exif)
    else:
        (pixels.convert("RGBA") if kind == "transparent" else pixels).save(tmp_path / A)
    if kind == "transparent":
        clear = pixels.convert("RGBA")
        clear.putalpha(40)
        clear.save(tmp_path / A)
    (sample,) = read_inputs([tmp_path / A])
    (message,) = as_messages(open_task("caption").phrase(sample), None)
    data = base64.b64decode(message["content"][0]["image_url"]["url"].partition(",")[2])
    assert (data == (tmp_path / A).read_bytes()) is (kind == "plain")
    received = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(received, np.asarray(open_image(sample.media[0])))
