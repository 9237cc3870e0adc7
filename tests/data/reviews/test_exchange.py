"""Labels of a review as data: read by a run, exported as rows, and exchanged with Label Studio."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.reviews import TASK, make_review
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import read_samples
from mllm_tailor.data.reviews.database import insert
from mllm_tailor.data.reviews.desk import Change, Desk, Reviewer
from mllm_tailor.data.reviews.documents import make_document
from mllm_tailor.data.reviews.export import decision_rows, export_labels
from mllm_tailor.data.reviews.label_studio import export_tasks, import_annotations
from mllm_tailor.data.reviews.labels import undecided
from mllm_tailor.data.reviews.store import ReviewStore
from mllm_tailor.tasks import open_task

ANNE = Reviewer("tab", "Anne")


def correct_first(store: ReviewStore, total: str = "7.00") -> None:
    """Finish the first document of the queue, its total corrected."""
    desk = Desk(store)
    entry = desk.take(ANNE)
    assert entry is not None
    entry = desk.change(ANNE, Change(entry.document.sha256, "correct", entry.last, "total", total))
    for path in undecided(entry, store.schema):
        entry = desk.change(ANNE, Change(entry.document.sha256, "confirm", entry.last, path))
    desk.change(ANNE, Change(entry.document.sha256, "finish", entry.last))
    desk.release(ANNE)


def test_a_run_reads_the_finished_documents(tmp_path: Path) -> None:
    store = make_review(tmp_path, 2)
    correct_first(store)
    (tmp_path / "scans" / "r1.png").unlink()  # the label has a copy of its own
    dataset = read_samples(store.path)
    (sample,) = dataset.samples
    labels = open_task("extract", TASK["extract"]).labels(sample)
    assert (dataset.layout, labels["total"], labels["company"], len(labels["items"])) == ("review", "7.00", "SHOP 1", 2)
    assert sample.extra["rejected"] == store.entries("done")[0].document.reading["text"]
    assert sample.extra["review"] == {"corrected": 1, "confirmed": 5}
    assert any("1 documents wait for a decision" in note for note in dataset.notes)
    with Image.open(sample.media[0].path) as image:  # type: ignore[arg-type]
        assert image.size == (300, 420)


def test_exported_rows_read_the_same_as_the_database(tmp_path: Path) -> None:
    store = make_review(tmp_path / "review", 1, accepted=1)
    correct_first(store)
    correct_first(store)
    assert export_labels(store, tmp_path / "out" / "labels.jsonl") == 2
    task = open_task("extract", TASK["extract"])
    ours, exported = (read_samples(path).samples for path in (store.path, tmp_path / "out" / "labels.jsonl"))
    assert [task.labels(sample) for sample in ours] == [task.labels(sample) for sample in exported]
    assert [sample.media[0].path.read_bytes() for sample in ours] == [  # type: ignore[union-attr]
        sample.media[0].path.read_bytes()
        for sample in exported  # type: ignore[union-attr]
    ]
    assert [sample.extra.get("audited") for sample in exported] == [None, True]
    assert all(sample.extra["rejected"] for sample in exported)
    row = next(row for row in decision_rows(store) if row["action"] == "correct")
    assert (row["before"], row["after"], row["confidence"], row["undone"]) == ("9.00", "7.00", 0.9, False)


def test_label_studio_gets_predictions_with_scores_and_gives_annotations_back(tmp_path: Path) -> None:
    store = make_review(tmp_path / "review", 2)
    assert export_tasks(store, tmp_path / "tasks.json") == 2
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    (prediction,) = tasks[0]["predictions"]
    results = {result["from_name"]: result for result in prediction["result"]}
    assert results["total"] == {
        "from_name": "total", "to_name": "document", "type": "textarea", "value": {"text": ["9.00"]}, "score": 0.9,
    }  # fmt: skip
    assert results["payment"]["type"] == "choices" and len(results["items"]["value"]["text"]) == 2
    assert (tmp_path / tasks[0]["data"]["images"][0].removeprefix("/data/local-files/?d=")).is_file()
    config = (tmp_path / "label_config.xml").read_text()
    assert '<TextArea name="total" toName="document"' in config and '<Choice value="card"/>' in config

    results["total"]["value"]["text"] = ["8.00"]
    results["items"]["value"]["text"] = ['{"name": "TEA", "price": "8.00"}']
    annotation = {"result": list(results.values()), "completed_by": {"email": "a@example.org"}, "lead_time": 12.0}
    tasks[0]["annotations"] = [{"was_cancelled": True, "result": []}, annotation]
    tasks.append({"data": {"document": "f" * 64}, "annotations": [annotation]})
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    imported = import_annotations(store, tmp_path / "export.json")
    assert (imported.finished, imported.unannotated, len(imported.left)) == (1, 1, 1)
    (sample,) = read_samples(store.path).samples
    assert sample.fields["total"] == "8.00" and sample.fields["items"] == [{"name": "TEA", "price": "8.00"}]
    assert {decision.reviewer for decision in store.decisions()} == {"Label Studio a@example.org"}
    again = import_annotations(store, tmp_path / "export.json")
    assert again.finished == 0 and "is done already" in again.left[0]


def test_a_database_from_elsewhere_leads_to_no_other_file(tmp_path: Path) -> None:
    """The name of a copy is made of a checksum and a suffix, both of which a database states."""
    store = make_review(tmp_path / "review", 1)
    correct_first(store)
    with store.writing() as connection:
        key, content, kind, worth = connection.execute("SELECT sha256, content, kind, worth FROM documents").fetchone()
        values = json.loads(content)
        values["media"][0]["files"][0]["sha256"] = "../../secret"
        update = "ON CONFLICT (sha256) DO UPDATE SET content = excluded.content, sum = excluded.sum"
        insert(connection, "documents", key, json.dumps(values), kind, worth, update=update)
    (tmp_path / "secret.png").write_bytes(b"secret")
    with pytest.raises(DataError, match=r"outside|leads"):
        read_samples(store.path)


def test_pages_of_one_file_are_one_document(tmp_path: Path) -> None:
    file = tmp_path / "two.tif"
    Image.new("RGB", (40, 40), "white").save(file, save_all=True, append_images=[Image.new("RGB", (40, 40), "red")])
    pages = tuple(Media("image", file, page=page) for page in range(2))
    document = make_document(Sample("two", pages), {"fields": {}}, "run", tmp_path)
    question = make_document(Sample("two", pages, prompt="Total?"), {"fields": {}}, "run", tmp_path)
    assert document.sha256 == make_document(Sample("x", pages[:1]), {}, "run", tmp_path).sha256 != question.sha256


def test_a_review_in_a_folder_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk: there, no journal can be made beside the file."""
    store = make_review(tmp_path / "review", 1)
    correct_first(store)
    monkeypatch.setattr("mllm_tailor.data.reviews.database.os.access", lambda path, mode: False)
    (sample,) = read_samples(store.path).samples
    assert sample.fields["total"] == "7.00"
    assert [file.name for file in store.folder.iterdir() if file.is_file()] == ["corrections.db"]
    with pytest.raises(DataError, match="readonly"):
        Desk(store).release(ANNE)
