"""`tailor predict`: a row for every file, written as it is made, continued after an interruption."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.manifest import create, record
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation import read_inputs
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run.new_files import Predictor, _identity, predict_to_file, prediction_row, stream
from mllm_tailor.run.output_file import sole_writer
from mllm_tailor.run.resolve import resolve
from mllm_tailor.run.run_dir import RunFolder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "predictions.md"
RUN = resolve(make_recipe({"data": "none", "task": "answer"}))


class Recorder(Predictor):
    """Predicts without a model, the last sample first; fails once `budget` samples are done."""

    def predict(self, samples: Sequence[Sample], on_done: Any) -> list[Prediction]:
        rows = []
        for number, sample in enumerate(reversed(samples)):
            if number == BUDGET[0]:
                raise KeyboardInterrupt
            SEEN.append(sample.id)
            rows.append(Prediction(sample.id, "7", {"answer": "7"}, problem=sample.extra.get("problem")))
            on_done(rows[-1])
        return rows


SEEN: list[str] = []
BUDGET = [100]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "march").mkdir(parents=True)
    for name in ("b.png", "a.png", "march/a.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "notes.xyz").write_text("a format that is not read")
    SEEN.clear()
    BUDGET[0] = 100
    return folder


def predictor(mode: str | None = None) -> Recorder:
    return Recorder(RUN, RUN.mode, engine=mode or "builtin")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_file_has_a_row_under_its_relative_path(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    rows = predict_to_file(out, predictor(), read_inputs([scans, scans / "b.png"]))
    assert rows_of(out) == rows
    files = [row["file"] for row in rows]
    assert files == ["a.png", "b.png", "march/a.png", "notes.xyz", str(scans / "b.png")]
    assert len({row["id"] for row in rows}) == 5
    assert [bool(row.get("problem")) for row in rows] == [False, False, False, True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "scans"]


def test_label_files_and_notes_of_a_folder_are_named_and_have_no_row(
    scans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.json", "march/labels.CSV", "notes.txt", "README", ".hidden.txt"):
        (scans / name).write_text("x")
    files = {sample.extra["file"] for sample in read_inputs([scans])}
    assert files == {"a.png", "b.png", "march/a.png", "notes.xyz"}
    assert "4 label files and notes have no row: README, a.json, march/labels.CSV, notes.txt" in caplog.text
    (sample,) = read_inputs([scans / "notes.txt"])
    assert "the format .txt is not read" in str(sample.extra["problem"])


def test_what_was_said_before_counts_when_predictions_are_continued(scans: Path) -> None:
    manifest = scans / "rows.jsonl"
    row: dict[str, Any] = {"image": "a.png", "question": "And the date?", "history": [["Total?", "9.00"]]}
    kinds = []
    for history in ([["Total?", "9.00"]], [["Shop?", "Kedai"]]):
        manifest.write_text(json.dumps({**row, "history": history}) + "\n")
        kinds.append(_identity(read_inputs([manifest])[0]))
    assert kinds[0] != kinds[1]


def test_rows_of_a_manifest_name_their_file_as_written(scans: Path) -> None:
    manifest = scans / "m.jsonl"
    lines = ['{"image": "a.png"}', '{"image": "none.png", "id": "x"}', '{"image": ["march/a.png", "b.png"]}', "{"]
    manifest.write_text("\n".join(lines))
    samples = read_inputs([manifest])
    assert [sample.extra.get("file") for sample in samples] == ["a.png", "none.png", "march/a.png", None]


def test_an_interrupted_prediction_continues(scans: Path, tmp_path: Path) -> None:
    out, samples = tmp_path / "o.jsonl", read_inputs([scans])
    BUDGET[0] = 3
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(out, predictor(), samples)
    assert [row["file"] for row in rows_of(out)] == ["notes.xyz", "march/a.png", "b.png"]  # as they were made
    with out.open("a") as file:
        file.write('{"id": "a", "file": "a.p')  # cut off by a crash
    (scans / "b.png").write_bytes((scans / "b.png").read_bytes() + b"changed")
    SEEN.clear()
    BUDGET[0] = 100
    rows = predict_to_file(out, predictor(), read_inputs([scans]))
    assert sorted(SEEN) == ["a", "b", "notes"]  # new, changed, and the one with a problem
    assert [row["file"] for row in rows] == ["a.png", "b.png", "march/a.png", "notes.xyz"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_finished_file_or_one_of_another_model_is_made_anew(scans: Path, tmp_path: Path, finished: bool) -> None:
    out, samples = tmp_path / "o.jsonl", read_inputs([scans])
    BUDGET[0] = 100 if finished else 2
    try:
        predict_to_file(out, predictor(), samples)
    except KeyboardInterrupt:
        assert not finished
    SEEN.clear()
    BUDGET[0] = 100
    predict_to_file(out, predictor(None if finished else "vllm"), samples)
    assert len(SEEN) == 4


@pytest.mark.parametrize("what", ["manifest", "image", "labels", "folder", "file of the run"])
def test_what_is_read_or_kept_is_not_replaced_by_predictions(scans: Path, tmp_path: Path, what: str) -> None:
    manifest, labels, run = scans / "m.jsonl", tmp_path / "labels.jsonl", tmp_path / "run"
    manifest.write_text('{"image": "a.png"}\n')
    labels.write_text('{"id": "a", "total": "1"}\n')
    create(run)
    kept = run / "predictions.jsonl"
    kept.write_text('{"id": "a", "text": ""}\n')
    record(run, kept)
    out = {"manifest": manifest, "image": scans / "a.png", "labels": labels, "folder": scans}.get(what, kept)
    before = out.read_bytes() if out.is_file() else b""
    with pytest.raises(RunError, match="name another file for the predictions"):
        predict_to_file(out, replace(predictor(), tuned=RunFolder(run)), read_inputs([manifest]))
    assert out.is_dir() or out.read_bytes() == before
    assert not SEEN


def test_one_process_at_a_time_writes_a_file(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    with sole_writer(out), pytest.raises(RunError, match=r"o.jsonl: another process writes this file"):
        predict_to_file(out, predictor(), read_inputs([scans]))
    predict_to_file(out, predictor(), read_inputs([scans]))


def test_links_out_of_a_folder_have_rows_and_links_inside_none(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (scans / "away").symlink_to(tmp_path / "outside", target_is_directory=True)
    (scans / "again").symlink_to(scans / "march", target_is_directory=True)
    samples = {sample.extra["file"]: sample for sample in read_inputs([scans])}
    assert "again" not in samples and "leads out of" in samples["away"].extra["problem"]


def test_a_stream_gives_predictions_as_they_are_made_and_can_be_left(scans: Path) -> None:
    samples = read_inputs([scans])
    assert [prediction.id for prediction in stream(predictor(), samples)] == [sample.id for sample in samples[::-1]]
    BUDGET[0] = 1
    predictions = stream(predictor(), samples)
    next(predictions)
    with pytest.raises(KeyboardInterrupt):
        next(predictions)
    left = stream(predictor(), samples)
    next(left)
    left.close()


def test_the_page_describes_every_key() -> None:
    prediction = Prediction(
        "a", "{", {"total": "7"}, {"total": 0.5}, problem="no JSON", cut=True, accept={"total": True},
        where={"total": ()}, candidates={"total": ["1"]},
    )  # fmt: skip
    row = prediction_row(Sample("a", extra={"file": "a.png"}), prediction)
    keys = re.findall(r"^\| `(\w+)` \|", PAGE.read_text().partition("## Values")[0], re.M)
    uncalibrated = prediction_row(Sample("a"), Prediction("a", "7", {"total": "7"}, raw={"total": {"mean": 0.5}}))
    assert list(uncalibrated)[2:4] == ["confidence", "calibrated"]
    assert list(row) == [key for key in keys if key != "calibrated"]
    assert list(prediction_row(Sample("a"), Prediction("a", ""))) == ["id", "fields", "raw", "text", "seconds"]
