"""Regions of pictures: boxes in thousandths, several views stitched into one, documents beside their labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.real_data import real_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import DataIssue, detect, read_samples
from mllm_tailor.data.layouts.base import Folder
from mllm_tailor.generation import read_inputs
from mllm_tailor.media.open import image_size, open_image
from mllm_tailor.models import InputSettings, encode, generate, load_model, save_model
from mllm_tailor.run.report import LABEL_COLOR
from mllm_tailor.scoring.metrics import METRICS
from mllm_tailor.scoring.metrics.iou import overlap
from mllm_tailor.tasks import open_task

ground = open_task("ground")
BOX = st.tuples(*[st.integers(0, 999)] * 2, *[st.integers(1, 1000)] * 2).filter(lambda b: b[0] < b[2] and b[1] < b[3])


def draw(file: Path, size: tuple[int, int] = (200, 100), box: tuple[int, ...] = (20, 20, 80, 60)) -> Media:
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).rectangle(box, fill="black")
    picture.save(file)
    return Media("image", file)


def test_a_box_is_written_as_internvl_writes_regions_and_read_back(tmp_path: Path) -> None:
    media = (draw(tmp_path / "a.png"),)
    sample = Sample("a", media, "a cat", fields={"box": [100, 200, 400, 600]}, source="x:1")
    phrased = ground.phrase(sample)
    assert phrased.prompt == "Where is <ref>a cat</ref>?"
    assert phrased.answer == "<ref>a cat</ref><box>[[100, 200, 400, 600]]</box>"
    assert ground.parse(phrased.answer).fields == ground.labels(sample) == {"box": [100, 200, 400, 600]}
    marked = Sample("a", media, "Detect <ref>a cat</ref>", phrased.answer, source="x:1")  # InternVL's own rows
    assert ground.phrase(marked).answer == phrased.answer
    pixels = open_task("ground", {"unit": "pixels"})
    assert pixels.labels(Sample("a", media, "a", fields={"box": [20, 20, 80, 60]})) == {"box": [100, 200, 400, 600]}
    unlabelled = ground.phrase(sample.unlabelled())
    assert unlabelled.answer is None and unlabelled.prompt == phrased.prompt


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"box": [0, 0, 1200, 50]}, "outside the image"),
        ({"box": [50, 0, 50, 50]}, "empty"),
        ({"box": [10, 20]}, "a box is"),
        ({"bax": [1, 2, 3, 4]}, "did you mean `bax`"),
    ],
)
def test_a_box_that_is_none_names_the_row(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        ground.phrase(Sample("a", (draw(tmp_path / "a.png"),), "a cat", fields=fields, source="rows.jsonl:7"))
    assert "rows.jsonl:7" in str(caught.value)


def test_a_question_without_its_picture_or_phrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        ground.phrase(Sample("a", prompt="a cat", source="x:1"))
    with pytest.raises(DataError, match="no phrase"):
        ground.phrase(Sample("a", (draw(tmp_path / "a.png"),), source="x:1"))


@given(text=st.text())
def test_parsing_never_raises(text: str) -> None:
    reply = ground.parse(text)
    assert bool(reply.fields) != bool(reply.problem)


@pytest.mark.slow
@given(one=BOX, other=BOX)
def test_overlap_is_symmetric_whole_with_itself_and_at_most_one(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert overlap(one, other) == overlap(other, one) and 0 <= overlap(one, other) <= 1
    assert overlap(one, one) == 1
    iou_50 = METRICS.load("iou_50").compare
    assert iou_50(list(one), list(other), "").numerator == (overlap(one, other) >= 0.5)
    assert iou_50(list(one), "", "").numerator == 0


def test_six_views_become_one_picture_of_2688x896(tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "white", "black", "yellow"]
    for number, colour in enumerate(colours):
        Image.new("RGB", (64, 32), colour).save(tmp_path / f"{number}.png")
    row = {"views": [f"{number}.png" for number in range(6)], "question": "Which way?", "answer": "left"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (sample,) = read_samples(tmp_path).samples
    (media,) = sample.media
    whole = open_image(media)
    assert whole.size == image_size(media) == (2688, 896)
    seen = [whole.getpixel((448 + 896 * (n % 3), 224 + 448 * (n // 3))) for n in range(6)]
    assert seen == [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours]
    (asked,) = read_inputs([tmp_path / "rows.jsonl"])
    assert asked.media == sample.media and asked.prompt == "Which way?"
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"views": ["0.png", "clip.mp4"]}))
    faults: list[DataIssue] = []
    with pytest.raises(DataError):
        read_samples(tmp_path, on_issue=faults.append)
    assert "`views` are picture files" in faults[0].problem


def test_documents_beside_their_labels_are_read_page_by_page() -> None:
    folder = real_data("invoice_samples")
    assert detect(Folder(folder))[0] == "sidecar"
    faults: list[DataIssue] = []
    samples = read_samples(folder, on_issue=faults.append).samples
    assert len(samples) == 11 and all(sample.fields["issuer"] for sample in samples)
    assert any(len(sample.media) > 1 for sample in samples)
    assert all(sample.media[0].path and sample.media[0].path.suffix == ".pdf" for sample in samples)
    errors = [fault.source.rpartition("/")[2] for fault in faults if fault.severity == "error"]
    assert errors == ["Orlen.json:1"]  # its document is a text file
    assert any("Orlen.txt" in fault.problem for fault in faults if fault.severity == "warning")
    assert min(open_image(samples[0].media[0]).size) > 500


@pytest.mark.slow
def test_tiles_of_another_size(tiny_model_folder: Path, tmp_path: Path) -> None:
    sample = Sample("a", (draw(tmp_path / "a.png", (28, 28), (5, 5, 20, 20)),), "What?")
    usual, small = (
        load_model(tiny_model_folder, device="cpu", inputs=InputSettings(tile_size=tile)) for tile in (None, 28)
    )
    assert encode(sample, usual).length - encode(sample, small).length == 3  # 1 token in place of 4
    assert encode(sample, small).media["pixel_values"].shape[-2:] == (28, 28)
    assert len(generate([sample], small, max_new_tokens=2)) == 1
    save_model(small, tmp_path / "saved")
    assert encode(sample, load_model(tmp_path / "saved", device="cpu")).length == encode(sample, small).length
    with pytest.raises(ModelError, match="use 28"):
        load_model(tiny_model_folder, device="cpu", inputs=InputSettings(tile_size=42))


@pytest.mark.slow
def test_a_run_scores_boxes_and_draws_them(tmp_path: Path, tiny_model_folder: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for number in range(10):
        draw(data / f"{number}.png", box=(10 + 8 * number, 20, 60 + 8 * number, 70))
        box = [10 + 8 * number, 20, 60 + 8 * number, 70]
        rows.append({"image": f"{number}.png", "question": "the black square", "box": box})
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "boxes",
        "model": str(tiny_model_folder),
        "data": {"train": str(data), "held_out": {"fraction": 0.3}, "dev": 0},
        "task": {"ground": {"unit": "pixels"}},
        "method": {"name": "lora", "rank": 2},
        "train": {"epochs": 1, "batch_size": 4},
        "predict": {"max_new_tokens": 8},
        "output": str(tmp_path / "runs"),
    }
    (tmp_path / "boxes.yaml").write_text(yaml.safe_dump(values))
    run = run_recipe(tmp_path / "boxes.yaml", [], exclude_faulty=False, fresh=False)
    page = run.report.read_text()
    assert "iou at 0.5" in page.lower() and "data:image/jpeg" in page and LABEL_COLOR.startswith("#")
