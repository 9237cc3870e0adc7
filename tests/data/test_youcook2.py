"""YouCook2's timed captions: steps as texts, or as spans of films where these are there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.real_data import real_data

from mllm_tailor.data import DataIssue, read_samples
from mllm_tailor.tasks import open_task

ROW = {
    "video_id": "abc",
    "subset": "validation",
    "segments": [
        {"segment": [16, 22], "sentence": "cut the  bread"},
        {"segment": [30, 150], "sentence": "fry the bacon"},
    ],
}


def written(folder: Path, *rows: Any) -> Path:
    with gzip.open(folder / "annotations.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_without_films_a_step_is_asked_for_by_those_before_it(tmp_path: Path) -> None:
    first, second = read_samples(written(tmp_path, ROW)).samples
    assert (first.modality, first.group, first.split) == ("text", "abc", "validation")
    assert second.prompt == "A cook has done this so far:\n16 s to 22 s: cut the bread\nWhat is done next?"
    assert (first.answer, second.answer) == ("cut the bread", "fry the bacon")
    assert open_task("answer").phrase(second).answer == "fry the bacon"


def test_with_a_film_a_step_is_a_span_of_it(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "abc.mkv").write_bytes(b"film")
    first, second = read_samples(written(tmp_path, ROW)).samples
    assert second.media[0].span == (30.0, 150.0) and second.media[0].kind == "video"
    assert open_task("caption").phrase(first).answer == "cut the bread"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video_id": 7}, "`video_id` should be text"),
        ({"video_id": "../../x"}, "leads out of"),
        ({"segments": []}, "`segments` should be a list"),
        ({"segments": [{"segment": [5, 5], "sentence": "x"}]}, "step 1 has no span"),
        ({"segments": [{"segment": [0, 5], "sentence": " "}]}, "step 1 has no sentence"),
        ({"segments": [3]}, "step 1 has no span"),
    ],
)
def test_bad_rows_are_named_and_the_rest_is_read(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    faults: list[DataIssue] = []
    found = read_samples(written(tmp_path, ROW, ROW | changes), on_issue=faults.append)
    assert len(found.samples) == 2 and len(faults) == 1
    assert words in faults[0].problem and faults[0].source.endswith(":2")


@pytest.mark.slow
def test_a_file_cut_off_in_the_middle_says_so(tmp_path: Path) -> None:
    rows = [ROW | {"video_id": f"{number}-{number**7}"} for number in range(500)]
    file = written(tmp_path, *rows) / "annotations.jsonl.gz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    faults: list[DataIssue] = []
    assert 0 < len(read_samples(tmp_path, on_issue=faults.append).samples) < 1000
    assert "damaged or cut off" in faults[0].problem


@pytest.mark.slow
def test_the_real_captions() -> None:
    found = read_samples(real_data("youcook2_text"))
    assert found.layout == "youcook2" and len(found.samples) == 13824
    assert {sample.split for sample in found.samples} == {"training", "validation"}
    assert len({sample.group for sample in found.samples}) == 1788
