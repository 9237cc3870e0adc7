"""Label files of another shape than a layout writes: each found by the fuzzer or the corpus of bad inputs."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.label_files import write
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.strict_json import parse_json, repair_json
from mllm_tailor.data import DataIssue, csv_rows, read_samples
from mllm_tailor.data.layouts import LAYOUTS
from mllm_tailor.data.layouts.base import Folder, Layout
from mllm_tailor.data.layouts.regions import Region, scaled


def image() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, "PNG")
    return stream.getvalue()


def label_studio(result: Any) -> list[dict[str, Any]]:
    return [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": result}]}]


SHAPE = {"label": "x", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
LABELME: dict[str, Any] = {"imagePath": "a.png", "flags": {}, "imageWidth": 40, "imageHeight": 30}
QUESTION = {"image_id": None, "question": "q", "question_id": 1}
ANSWER = {"question_id": 1, "answers": [{"answer": "a"}]}
FORM = {"id": 0, "text": "TO:", "box": [1, 2, 3, 4], "label": "question", "linking": [[0, []], 5]}
SETS = {"a": None, "b": {"file_name": "b.jsonl"}}
ROWS = [{"instruction": "i", "input": "", "output": "o", "images": ["a.png"]}]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"l.json": label_studio(True)}, "`result` should be a list of objects"),
        ({"l.json": label_studio(["x"])}, "`result` should be a list of objects"),
        ({"l.json": label_studio([{"id": [], "type": "labels"}])}, "`id` of a result should be text"),
        ({"l.json": label_studio([{"id": "a", "type": {}}])}, "`type` of a result should be text"),
        ({"a.json": LABELME | {"shapes": [SHAPE | {"shape_type": []}]}}, r"a shape of the type \[\] is left out"),
        ({"a.json": LABELME | {"shapes": [SHAPE | {"points": 5}]}}, "a shape needs a `label` and `points`"),
        (
            {"a.json": LABELME | {"shapes": [SHAPE | {"points": [5, 5]}]}},
            "a point is two numbers|too few points|needs a `label`",
        ),
        ({"annotations/a.json": {"form": [FORM | {"words": [None]}]}, "images/a.png": image()}, "lists of words"),
        ({"annotations/a.json": {"form": [FORM | {"id": []}]}, "images/a.png": image()}, "objects with an id"),
        ({"dataset_info.json": SETS, "b.jsonl": ROWS}, "a: names no file of the set"),
    ],
)
def test_another_shape_is_named(files: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.png": image(), **files})
    issues: list[DataIssue] = []
    try:
        read_samples(folder, on_issue=issues.append)
    except DataError as error:
        issues.append(DataIssue(str(folder), str(error), ""))
    assert any(re.search(words, f"{issue.source}: {issue.problem}") for issue in issues), issues


def test_a_question_about_no_image_names_a_file_that_is_missing(tmp_path: Path) -> None:
    files = {"q.json": {"questions": [QUESTION]}, "a_annotations.json": {"annotations": [ANSWER]}}
    (sample,) = read_samples(write(tmp_path, files), "vqa_v2").samples
    assert sample.media[0].path == tmp_path / "None.jpg"


def test_a_member_that_takes_the_place_of_media_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("a.images", b"text"), ("a.png", image()), ("b.png", image()), ("b.txt", b"b")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    issues: list[DataIssue] = []
    assert len(read_samples(path, on_issue=issues.append).samples) >= 1
    assert any("takes the place of the media" in issue.problem for issue in issues)


def test_points_beyond_number_stay_inside_the_image() -> None:
    points = scaled([[1e308, 0], [5, 5]], (1e-300, 10), "f:1")
    assert Region("x", points).box() == [1000, 0, 1000, 500]


def test_integers_of_hundreds_of_digits_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="has 400 digits"):
        parse_json('{"total": ' + "9" * 400 + "}")
    assert parse_json("9" * 300) == int("9" * 300)
    assert repair_json('{"total": ' + "9" * 5000 + "}") == {"total": None}


def test_the_coding_of_a_table_is_found_beyond_its_ascii_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 16)
    path = tmp_path / "t.csv"
    for text, encoding in (("é", "cp1252"), ("é", "utf-8")):
        path.write_bytes(b"file_name,text\n" + b"a.png,plain\n" * 20 + f"b.png,{text}\n".encode(encoding))
        rows = [row for row in csv_rows.csv_rows(path) if not isinstance(row, DataIssue)]
        assert rows[-1].values["text"] == text and len(rows) == 21


def test_a_shape_that_nobody_thought_of_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(folder: Folder) -> Iterator[Any]:
        yield {}["label"]

    monkeypatch.setattr(LAYOUTS, "load", lambda name: Layout(lambda folder: True, read))
    with pytest.raises(DataError, match=rf"{tmp_path}: a label file has another shape .* `chat` \(KeyError") as caught:
        read_samples(tmp_path, "chat")
    assert isinstance(caught.value.__cause__, KeyError)


def test_label_files_are_json_objects_or_refused(tmp_path: Path) -> None:
    for number, value in enumerate(([], None, 5, "x", [[]])):
        folder = write(tmp_path / str(number), {"a.png": image(), "dataset_info.json": None})
        (folder / "dataset_info.json").write_text(json.dumps(value))
        with pytest.raises(DataError):
            read_samples(folder, "llama_factory")
