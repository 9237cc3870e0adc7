"""`tailor label`: two readings that agree become a label; refusals are in a ledger; nothing is overwritten or lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures.served_runs import FIELDS, calibrate, endpoint_of, make_run, receipt_files
from starlette.testclient import TestClient

from mllm_tailor.commands import label as command
from mllm_tailor.commands.label import LabelOptions, label_folder, read_price
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.data import read_samples
from mllm_tailor.generation import read_inputs
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run import label
from mllm_tailor.run.label import Price, Readings, draft_labels
from mllm_tailor.run.new_files import predictor_of_run
from mllm_tailor.run.resolve import ResolvedRun, resolve_saved
from mllm_tailor.run.teacher import RunTeacher
from mllm_tailor.serving import endpoint_teacher, openai_client
from mllm_tailor.serving.endpoint_teacher import EndpointTeacher


@pytest.fixture(scope="module")
def run() -> ResolvedRun:
    return resolve_saved(make_recipe({"data": "unused", "task": {"extract": {"fields": FIELDS}}, "model": "tiny"}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six unlabelled pictures."""
    receipt_files(tmp_path / "pictures", 6)
    return tmp_path / "pictures"


def rows(path: Path) -> list[Any]:
    return [row for _, row in read_jsonl(path)] if path.is_file() else []


def prediction(name: str, company: str, total: str, **more: Any) -> Prediction:
    return Prediction(name, "", {"company": company, "total": total}, **more)


class Scripted:
    """A teacher whose readings of a file are known."""

    chunk = 2

    def __init__(self, readings: dict[str, Readings], name: str = "scripted") -> None:
        self.readings, self.name = readings, name
        self.asked: Counter[str] = Counter()

    def describe(self) -> dict[str, Any]:
        return {"teacher": self.name}

    def read(self, samples: Sequence[Sample]) -> list[Readings]:
        self.asked.update(sample.id for sample in samples)
        return [self.readings[sample.id] for sample in samples]


def script() -> dict[str, Readings]:
    """Agreed, differing, doubtful, cut off, failing, and differing in form only."""
    tokens = {"prompt_tokens": 1000, "reply_tokens": 100}
    return {
        "0": Readings(prediction("0", "A", "1.50"), prediction("0", "A", "1.50"), **tokens),
        "1": Readings(prediction("1", "A", "1.50"), prediction("1", "B", "1.50"), **tokens),
        "2": Readings(
            prediction("2", "A", "7", accept={"company": True, "total": False}), prediction("2", "A", "7"), **tokens
        ),
        "3": Readings(prediction("3", "A", "7", cut=True), prediction("3", "A", "7"), **tokens),
        "4": Readings(failure="status 500"),
        "5": Readings(prediction("5", "", "7"), prediction("5", "", "7"), **tokens),
    }


def test_what_agrees_is_labelled_and_the_rest_is_in_the_ledger(run: ResolvedRun, folder: Path, tmp_path: Path) -> None:
    samples = read_inputs([folder])
    drafted = draft_labels(tmp_path / "out", samples, run, Scripted(script()), Price(1.0, 10.0))
    assert drafted.counts == {"labelled": 2, "disagree": 1, "not accepted": 1, "unreadable": 1, "failed": 1}
    assert drafted.reasons == {"company": 1, "total": 1, "a reply was cut off": 1, "status 500": 1}
    assert drafted.cost == pytest.approx(5 * (1000 + 10 * 100) / 1e6)
    ledger = {row["id"]: row for row in rows(tmp_path / "out" / "ledger.jsonl")}
    assert len(ledger) == 6 and ledger["1"]["second"] == {"company": "B"} and ledger["2"]["doubtful"] == ["total"]
    labelled = read_samples(tmp_path / "out" / "labels.jsonl", media_root=folder).samples
    assert [(sample.id, dict(sample.fields)) for sample in labelled] == [
        ("0", {"company": "A", "total": "1.50"}), ("5", {"company": "", "total": "7"}),
    ]  # fmt: skip
    assert all(sample.media[0].path is not None and sample.media[0].path.parent == folder for sample in labelled)


def test_a_second_call_asks_only_for_what_failed_and_changes_no_label(
    run: ResolvedRun, folder: Path, tmp_path: Path
) -> None:
    out, samples = tmp_path / "out", read_inputs([folder])
    draft_labels(out, samples, run, Scripted(script()), Price())
    labels = out / "labels.jsonl"
    edited = labels.read_text().replace('"A"', '"by hand"')
    labels.write_text(edited)
    again = Scripted(script() | {"4": Readings(prediction("4", "C", "9"), prediction("4", "C", "9"))})
    drafted = draft_labels(out, samples, run, again, Price())
    assert again.asked.keys() == {"4", "5"}  # the chunk of what failed
    assert labels.read_text().startswith(edited) and rows(labels)[-1]["id"] == "4" and len(rows(labels)) == 3
    assert drafted.counts == {"labelled": 3, "disagree": 1, "not accepted": 1, "unreadable": 1}
    with pytest.raises(RunError, match="another teacher"):
        draft_labels(out, samples, run, Scripted(script(), "other"), Price())


def test_rows_that_were_cut_off_are_made_again(run: ResolvedRun, folder: Path, tmp_path: Path) -> None:
    """As a kill leaves them, in labels and ledger; a row without its last newline is whole."""
    out, samples = tmp_path / "out", read_inputs([folder])
    draft_labels(out, samples, run, Scripted(script()), Price())
    whole = (out / "labels.jsonl").read_text()
    (out / "labels.jsonl").write_text(whole[:-20])
    (out / "ledger.jsonl").write_text((out / "ledger.jsonl").read_text()[:-20])
    drafted = draft_labels(out, samples, run, Scripted(script()), Price())
    assert (out / "labels.jsonl").read_text() == whole and drafted.counts["labelled"] == 2
    (out / "labels.jsonl").write_text(whole[:-1])
    again = Scripted(script() | {"4": Readings(prediction("4", "C", "9"), prediction("4", "C", "9"))})
    draft_labels(out, samples, run, again, Price())
    assert [row["id"] for row in rows(out / "labels.jsonl")] == ["0", "5", "4"]
    (out / "labels.jsonl").write_text("[]\n" + whole)
    with pytest.raises(RunError, match=r"labels.jsonl:1: not a row"):
        draft_labels(out, samples, run, again, Price())


def test_labels_that_were_there_are_kept(run: ResolvedRun, folder: Path, tmp_path: Path) -> None:
    """In the folder of the labels, and beside the files themselves."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.jsonl").write_text('{"file_name": "0.png", "fields": {"company": "mine", "total": "0"}}\n')
    drafted = draft_labels(out, read_inputs([folder]), run, Scripted(script()), Price())
    assert drafted.kept == 1 and rows(out / "labels.jsonl")[0]["fields"]["company"] == "mine"
    assert [row["id"] for row in rows(out / "labels.jsonl")[1:]] == ["5"]
    (folder / "metadata.jsonl").write_text('{"file_name": "5.png", "company": "mine", "total": "0"}\n')
    labelled = read_samples(folder, on_issue=lambda _: None).samples
    left = label.samples_without_labels(read_inputs([folder]), iter(labelled), run.task)
    assert [sample.id for sample in left] == ["0", "1", "2", "3", "4"]


def test_a_teacher_that_is_gone_stops_the_command(
    run: ResolvedRun, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label, "FAILURES_IN_A_ROW", 3)
    gone = Scripted({str(number): Readings(failure="no answer") for number in range(6)})
    with pytest.raises(RunError, match=r"3 files in a row could not be read \(no answer\)"):
        draft_labels(tmp_path / "out", read_inputs([folder]), run, gone, Price())
    drafted = draft_labels(tmp_path / "out", read_inputs([folder]), run, Scripted(script()), Price())
    assert sum(drafted.counts.values()) == 6


@pytest.mark.parametrize(
    ("task", "agreed"),
    [
        ({"answer": {}}, {"answer": "yes"}),
        ({"classify": {"classes": ["invoice", "letter"]}}, {"class": "letter"}),
    ],
)
def test_labels_of_other_tasks_read_back(
    task: dict[str, Any], agreed: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    run = resolve_saved(make_recipe({"data": "unused", "task": task, "model": "tiny"}))
    samples = [
        Sample(s.id, s.media, "Is it?" if "answer" in task else "", extra=s.extra) for s in read_inputs([folder])
    ]
    same = {s.id: Readings(Prediction(s.id, "", agreed), Prediction(s.id, "", agreed)) for s in samples}
    draft_labels(tmp_path / "out", samples, run, Scripted(same), Price())
    read = read_samples(tmp_path / "out" / "labels.jsonl", media_root=folder).samples
    assert len(read) == 6 and all(run.task.labels(sample) == agreed for sample in read)


def test_tasks_without_one_right_value_are_refused(tmp_path: Path) -> None:
    run = resolve_saved(make_recipe({"data": "unused", "task": "caption", "model": "tiny"}))
    with pytest.raises(RunError, match="labels of the task `caption` cannot be drafted"):
        draft_labels(tmp_path, [], run, Scripted({}), Price())


# --- A run as the teacher -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_reads_twice_by_its_promise(tiny_model_folder: Path, folder: Path, tmp_path: Path) -> None:
    """The first reading is that of `predict`, with what is promised of it. An image that is none fails alone."""
    teacher = make_run(tmp_path / "runs", "receipts", tiny_model_folder, {"extract": {"fields": FIELDS}})
    calibrate(teacher)
    (folder / "broken.png").write_bytes(b"no image")
    drafted = label_folder(folder, str(teacher.path), LabelOptions(temperature=0.01))
    ledger = {row["id"]: row for row in rows(tmp_path / "pictures-labels" / "ledger.jsonl")}
    assert ledger["broken"]["status"] == "failed" and "broken.png" in ledger["broken"]["problem"]
    assert sum(drafted.counts.values()) == len(ledger) == 7
    reader = RunTeacher(predictor_of_run(teacher.path), 0.01, 0)
    samples = read_inputs([folder])[: reader.chunk]
    for sample, readings in zip(samples, reader.read(samples), strict=True):
        assert readings.first is not None and readings.first.accept is not None
        assert ledger[sample.id]["status"] == label.judge(reader.predictor.run, readings)[0]
    hot = RunTeacher(predictor_of_run(teacher.path), 5.0, 0).read(samples)
    assert all(item.first and item.second and item.first.text != item.second.text for item in hot)


# --- An endpoint as the teacher -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_our_own_server_does_not_sample_so_images_are_turned(
    client: TestClient, run: ResolvedRun, runs: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    served = predictor_of_run(runs["receipts"]).run
    teacher = EndpointTeacher(endpoint_of(client), served, 0.7, 0)
    drafted = draft_labels(tmp_path / "out", read_inputs([folder])[:3], served, teacher, Price(1.0, 1.0))
    ledger = rows(tmp_path / "out" / "ledger.jsonl")
    assert {row["second_by"] for row in ledger} == {"turned images"} and sum(drafted.counts.values()) == 3
    assert drafted.prompt_tokens > 0 and drafted.cost > 0 and "failed" not in drafted.counts


def test_a_flaky_endpoint(run: ResolvedRun, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many requests, a server error, a time-out, HTML instead of JSON, a reply that is no JSON: one file each."""
    monkeypatch.setattr(openai_client, "_pause", lambda _: 0.0)
    monkeypatch.setattr(endpoint_teacher, "CLIENTS", 1)
    asked: list[dict[str, Any]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        asked.append(body)
        which = len({str(item["messages"]) for item in asked}) - 1  # the number of the file
        if which == 0 and len(asked) <= 2:
            return httpx2.Response(429, headers={"retry-after": "0"}, json={"error": {"message": "busy"}})
        if which == 1:
            return httpx2.Response(500, json={"error": {"message": "broken"}})
        if which == 2:
            raise httpx2.ReadTimeout("too slow", request=request)
        if which == 3:
            return httpx2.Response(200, text="<html>")
        text = "I cannot read this." if which == 4 else '{"company": "A", "total": "1"}'
        message = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        return httpx2.Response(200, json=message | {"usage": {"prompt_tokens": 10, "completion_tokens": 5}})

    teacher = EndpointTeacher(endpoint_of(httpx2.Client(transport=httpx2.MockTransport(answer)), "big"), run, 0.7, 3)
    drafted = draft_labels(tmp_path / "out", read_inputs([folder]), run, teacher, Price(1.0, 2.0))
    ledger = rows(tmp_path / "out" / "ledger.jsonl")
    assert [row["status"] for row in ledger] == ["labelled", "failed", "failed", "failed", "unreadable", "labelled"]
    assert "500" in ledger[1]["problem"] and "no answer" in ledger[2]["problem"] and "OpenAI" in ledger[3]["problem"]
    assert drafted.prompt_tokens == 3 * 20 and drafted.cost == pytest.approx(3 * (20 + 2 * 10) / 1e6)
    assert {(item["temperature"], item.get("seed")) for item in asked} == {(0.0, None), (0.7, 3)}


def test_the_command_names_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        label_folder(tmp_path / "nowhere", "runs/x", LabelOptions())
    with pytest.raises(RunError, match="pass --recipe"):
        label_folder(folder, "http://localhost:1/v1", LabelOptions())
    with pytest.raises(RunError, match="two numbers"):
        read_price("cheap")
    assert command.read_price("0.5,2") == Price(0.5, 2.0)
