"""What users bring: each bad file or row is excluded with a line in the ledger, each odd one read by a stated rule."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from fixtures.pdfs import drawn, pdf
from fixtures.videos import STEADY, clip
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run.dataset import Splits, prepare
from mllm_tailor.run.ledger import measure, write_ledger
from mllm_tailor.run.predict import open_base
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.run.speech_units import with_speech_units


def written(folder: Path, files: Mapping[str, bytes], rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def picture(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (60, 40), (level, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def sound(seconds: float, rate: int = 8000, subtype: str = "PCM_16", channels: int = 1) -> bytes:
    stream, count = io.BytesIO(), int(seconds * rate)
    noise = np.random.default_rng(count).normal(0, 0.1, (count, channels)).astype(np.float32)
    soundfile.write(stream, noise, rate, format="WAV", subtype=subtype)
    return stream.getvalue()


def frameless() -> bytes:
    """A container that announces pictures and holds none."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="matroska") as container:
        video = container.add_stream("mpeg4", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return stream.getvalue()


def recipe_of(data: Path, task: Any, model: Any) -> ResolvedRun:
    held_out = {"column": "split", "value": "test"}
    values = {"data": {"train": str(data), "held_out": held_out, "dev": 0, "faulty": "exclude"}, "task": task}
    return resolve(make_recipe(values | {"model": model}))


def ledger(run: ResolvedRun, splits: Splits, folder: Path) -> dict[str, dict[str, Any]]:
    """Its rows by where they stand in the data."""
    run = with_speech_units(run, splits.learned, folder / "units.safetensors")
    lengths = measure(open_base(run), run.task, splits)
    write_ledger(folder / "samples.jsonl", run.task, splits, lengths)
    return {str(row["source"]).rpartition(":")[2]: row for _, row in read_jsonl(folder / "samples.jsonl")}


@pytest.mark.slow
def test_pictures_clips_and_documents(tmp_path: Path, tiny_model_folder: Path) -> None:
    jumpy = [0.0, 0.04, 0.5, 0.55, 1.7, 1.74]
    bad = {
        "frames.mkv": (frameless(), "frames.mkv: no video in a known format"),
        "half.mp4": (clip(STEADY)[: len(clip(STEADY)) // 2], "half.mp4: cut off"),
        "locked.pdf": (drawn(encrypted=True), "locked with a password"),
        "long.pdf": (pdf(2000), "2,000 pages, over the limit of 100"),
        "gone.png": (None, "no such file"),
    }
    odd = {"jumpy.mp4": clip(jumpy), "turned.mp4": clip(STEADY, rotation=90), "pages.pdf": pdf(2)}
    good = {f"{level}.png": picture(level) for level in range(0, 240, 40)}
    files = good | odd | {name: data for name, (data, _) in bad.items() if data is not None}
    kinds = {"mp4": "video", "mkv": "video", "pdf": "image", "png": "image"}
    rows = [
        {
            kinds[name[-3:]]: name,
            "question": f"What is {name}?",
            "answer": name,
            "split": "test" if place < 2 else "train",
        }
        for place, name in enumerate([*good, *odd, *bad])
    ]
    rows.append({"question": "And without any picture?", "answer": "no"})
    data = written(tmp_path / "data", files, rows)
    recipe = recipe_of(data, "answer", {"path": str(tiny_model_folder), "frames": 2})
    found = ledger(recipe, prepare(recipe)[0], tmp_path)
    assert len(found) == len(rows)  # every row has its line
    first = len(good) + len(odd) + 1
    for number, (_, words) in enumerate(bad.values(), first):
        assert found[str(number)]["part"] == "excluded"
        assert words in found[str(number)]["reason"]
    assert "names no file" in found[str(len(rows))]["reason"]
    assert {found[str(number)]["part"] for number in range(len(good) + 1, first)} == {"train"}
    data_spec = recipe.recipe.data.model_copy(update={"faulty": "refuse"})
    refusing = resolve(recipe.recipe.model_copy(update={"data": data_spec}))
    with pytest.raises(DataError, match=r"6 faults in the data:(.|\n)*Fix these rows"):
        prepare(refusing)


@pytest.mark.slow
def test_recordings(tmp_path: Path, tiny_model_folder: Path) -> None:
    odd = {
        "stereo.wav": sound(0.3, channels=2),
        "eight_bits.wav": sound(0.4, subtype="PCM_U8"),
        "studio.wav": sound(0.5, rate=96_000, subtype="PCM_24"),
    }
    bad = {
        "nothing.wav": (sound(0), "of 0 s"),
        "hours.wav": (sound(3 * 3600, rate=1000, subtype="PCM_U8"), "3:00:00 h of sound, over the limit of 0:30:00 h"),
    }
    good = {f"{number}.wav": sound(0.3 + number / 10) for number in range(3)}
    names = [*good, *odd, *bad]
    rows = [
        {"audio": name, "text": name, "split": "test" if place < 1 else "train"} for place, name in enumerate(names)
    ]
    data = written(tmp_path / "data", good | odd | {name: made for name, (made, _) in bad.items()}, rows)
    recipe = recipe_of(data, "transcribe", {"path": str(tiny_model_folder), "units": {"count": 4}})
    found = ledger(recipe, prepare(recipe)[0], tmp_path)
    assert [found[str(number + 1)]["part"] for number in range(len(names))] == [
        "held_out",
        *["train"] * 5,
        *["excluded"] * 2,
    ]
    for number, (_, words) in enumerate(bad.values(), len(good) + len(odd) + 1):
        assert words in found[str(number)]["reason"]


@pytest.mark.slow
def test_boxes_and_classes(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = [
        {"image": f"{number}.png", "question": "the cup", "box": box, "split": "test" if number == 0 else "train"}
        for number, box in enumerate([[0, 0, 500, 500], [10, 10, 900, 900], [100, 100, 1200, 300], [5, 5, 5, 9]])
    ]
    files = {f"{number}.png": picture(40 * number) for number in range(len(rows))}
    boxes = recipe_of(written(tmp_path / "boxes", files, rows), "ground", {"path": str(tiny_model_folder)})
    found = ledger(boxes, prepare(boxes)[0], tmp_path)
    assert [found[str(number)]["part"] for number in (1, 2, 3, 4)] == ["held_out", "train", "excluded", "excluded"]
    assert all("outside the image" in found[number]["reason"] for number in "34")
    rows = [
        {"image": f"{number}.png", "label": label, "split": "test" if number == 0 else "train"}
        for number, label in enumerate(["wave", "tap", "swipe", "tap"])
    ]
    classes = recipe_of(written(tmp_path / "classes", files, rows), "classify", {"path": str(tiny_model_folder)})
    found = ledger(classes, prepare(classes)[0], tmp_path)
    assert found["1"]["note"] == "its class `wave` is in no training sample; scored all the same"
