"""What tools and hubs export beyond the examples: regions with texts, captions, boxes, objects, rows of no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.data_examples import image, recording, write_tar
from fixtures.label_files import write

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import DataIssue, propose_recipe, read_samples
from mllm_tailor.recipe import read_recipe

A, W = "a.png", "a.wav"
OUTLINE = {"polygon": [[[100, 100], [500, 100], [500, 600]]]}
CVAT_BOX = '<box label="cup" xtl="16" ytl="16" xbr="32" ybr="48"/>'
CVAT = '<annotations><image id="0" name="a.png" width="64" height="64">{}</image></annotations>'


def look(folder: Path, files: dict[str, Any]) -> tuple[str, list[Sample], str]:
    """The task that init proposes, the samples, and what reading states."""
    data = write(folder / "set", {A: image(A), W: recording(W), **files})
    issues: list[DataIssue] = []
    dataset = read_samples(data, on_issue=issues.append)
    (folder / "recipe.yaml").write_text(propose_recipe(dataset, issues), encoding="utf-8")
    return read_recipe(folder / "recipe.yaml").task_name, list(dataset.samples), "\n".join(map(str, issues))


def region(identifier: str, kind: str, **value: Any) -> dict[str, Any]:
    stated = {"x": 10, "y": 10, "width": 30, "height": 40, "rotation": 0, **value}
    return {"id": identifier, "from_name": kind, "to_name": "image", "type": kind, "value": stated}


def test_texts_of_labelled_regions_are_fields(tmp_path: Path) -> None:
    results = []
    for identifier, label, text in (("1", "total", "9.00"), ("2", "item", "tea"), ("3", "item", "milk")):
        results += [region(identifier, "rectangle"), region(identifier, "rectanglelabels", rectanglelabels=[label])]
        results += [region(identifier, "textarea", text=[text])]
    task = {"id": 1, "data": {"image": A}, "annotations": [{"id": 1, "result": results}]}
    name, (sample,), said = look(tmp_path, {"export.json": [task]})
    assert name == "extract" and sample.fields == {"total": "9.00", "item": "tea\nmilk"}
    assert "boxes of regions whose text is read are not learned" in said


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"label": ["A dog runs over grass.", "The dog is running."]}, "caption"),
        ({"bbox": [{"label": "cup", "x": 16, "y": 16, "width": 16, "height": 32}]}, "ground"),
        ({"segmentation": [{"label": "cup", "points": [1, 2, 30, 4, 30, 40]}]}, "segment"),
    ],
)
def test_doccano_exports(row: dict[str, Any], task: str, tmp_path: Path) -> None:
    name, (sample,), _ = look(tmp_path, {"all.jsonl": [{"id": 1, "filename": A, **row, "Comments": []}]})
    assert name == task
    assert sample.fields.get("box", [250, 250, 500, 750]) == [250, 250, 500, 750]


def test_boxes_of_a_column_of_objects(tmp_path: Path) -> None:
    rows = [{"file_name": A, "objects": [{"bbox": [16, 16, 16, 32], "category": "cup"}]}]
    name, (sample,), _ = look(tmp_path / "0", {"metadata.jsonl": rows})
    assert (name, sample.prompt, sample.fields["box"]) == ("ground", "cup", [250, 250, 500, 750])
    rows[0]["objects"] = {"bbox": [[40, 16, 60, 32]], "category": ["cup"]}
    with pytest.raises(DataError, match=r"metadata\.jsonl:1: the box .* is outside"):
        look(tmp_path / "1", {"metadata.jsonl": rows})


@pytest.mark.parametrize(
    ("files", "fields"),
    [
        ({"a.txt": "0 0.375 0.5 0.25 0.5\n", "classes.txt": "cup\n"}, {"box": [250, 250, 500, 750]}),
        ({"a.txt": "0 0.1 0.1 0.5 0.1 0.5 0.6\n", "data.yaml": "names: {0: cup}\n"}, OUTLINE),
        ({"a.xml": CVAT.format(CVAT_BOX)}, {"box": [250, 250, 500, 750]}),
        ({"a.xml": CVAT.format('<tag label="cup"/>')}, {"label": "cup"}),
        ({"a.txt": "two dogs run here\n"}, {"text": "two dogs run here"}),
    ],
)  # fmt: skip
def test_label_files_of_images(files: dict[str, Any], fields: dict[str, Any], tmp_path: Path) -> None:
    data = write(tmp_path, {A: image(A), "b.png": image("b"), **files})
    if "two" in files.get("a.txt", ""):
        write(data, {"b.txt": "a cat"})
    samples = read_samples(data, on_issue=lambda issue: None).samples
    assert samples[0].fields == fields and samples[0].media[0].path == (tmp_path / A).resolve()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": "0 0.5 0.5 0.2 0.2\n"}, r"a\.txt:1: the class 0 has no name"),
        ({"a.txt": "0 0.5 0.5 0.2 0.2\n0 5 5 2 2\n", "classes.txt": "cup\n"}, r"a\.txt:2: no class with a box"),
        ({"a.xml": "<annotation><filename>a.png</filename><object><name>cup</name></object></annotation>"}, "bndbox"),
        ({"a.xml": '<!DOCTYPE l [<!ENTITY a "b">]><annotation><object/></annotation>'}, "no known layout"),
    ],
)
def test_label_files_that_cannot_be_read_are_named(files: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_samples(write(tmp_path, {A: image(A), **files}))


def test_a_null_in_the_file_column_of_a_question_is_no_file(tmp_path: Path) -> None:
    rows = [{"image": name, "question": "Which?", "choices": ["x", "y"], "answer": 0} for name in (None, A)]
    name, samples, said = look(tmp_path, {"rows.jsonl": rows})
    assert (
        name == "choose" and sorted(len(sample.media) for sample in samples) == [0, 1] and "names no file" not in said
    )


def test_the_question_of_a_speech_manifest(tmp_path: Path) -> None:
    row = {"audio_filepath": W, "duration": 4.0, "context": "What is said?", "answer": "hello"}
    name, (sample,), _ = look(tmp_path, {"manifest.jsonl": [row]})
    assert (name, sample.prompt, sample.answer) == ("answer", "What is said?", "hello")


def test_questions_of_a_tar_file(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "s.tar", {"a.jpg": "image", "a.json": [{"question": "Which?", "answer": "x"}]})
    (sample,) = read_samples(tmp_path / "set").samples
    assert (sample.prompt, sample.answer) == ("Which?", "x")


def test_the_folder_of_an_unpacked_archive_is_named(tmp_path: Path) -> None:
    write(tmp_path, {f"dataset/{name}/{number}.png": image(name) for number, name in enumerate(("cat", "dog"))})
    with pytest.raises(DataError, match="its folder `dataset` is laid out as `class_folders`"):
        read_samples(tmp_path)
