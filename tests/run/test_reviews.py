"""The loop over a tiny model: read new files, correct them, learn the corrections, say what they brought."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from mllm_tailor.cli.app import run_command
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json, read_jsonl
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import read_samples
from mllm_tailor.data.reviews.desk import Change, Desk, Reviewer
from mllm_tailor.data.reviews.documents import make_document
from mllm_tailor.data.reviews.labels import undecided
from mllm_tailor.data.reviews.store import Entry, ReviewStore
from mllm_tailor.recipe import read_recipe
from mllm_tailor.review.app import make_app
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.objective_inputs import rejected_replies
from mllm_tailor.run.resolve import resolve
from mllm_tailor.serving.settings import ServeSettings
from mllm_tailor.synthetic import draw_folder

FIELDS = {"company": "string", "date": "date", "address": "string", "total": "amount"}
ANNE = Reviewer("tab", "Anne")


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("receipts")
    draw_folder(folder, 8, 4, seed=5)
    return folder


@pytest.fixture(scope="module")
def new_receipts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    draw_folder(folder, 3, 1, seed=6)
    return folder


def labels_of(folder: Path) -> dict[str, Mapping[str, str]]:
    """Labels by the name of the file."""
    return {sample.media[0].path.name: sample.fields for sample in read_samples(folder).samples}  # type: ignore[union-attr]


def recipe_file(folder: Path, data: Path, model: Path | str = "tiny", **changes: object) -> Path:
    values = {
        "name": "first",
        "model": str(model),
        "data": {"train": str(data), "held_out": {"column": "split", "value": "dev"}, "dev": 0.2},
        "task": {"extract": FIELDS},
        "method": {"name": "lora", "rank": 4, "parts": ["language"]},
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
        "predict": {"max_new_tokens": 24},
        "output": str(folder / "runs"),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def finish(store: ReviewStore, labels: Mapping[str, Mapping[str, str]], desk: Desk | None = None) -> None:
    """Decide about every waiting document as its labels state it."""
    desk = desk or Desk(store)
    while (entry := desk.take(ANNE)) is not None:
        entry = decide(desk, entry, labels[Path(entry.document.file).name])
        desk.change(ANNE, Change(entry.document.sha256, "finish", entry.last))


def decide(desk: Desk, entry: Entry, label: Mapping[str, str]) -> Entry:
    fields = entry.document.reading.get("fields", {})
    for path in undecided(entry, desk.store.schema):
        action = "confirm" if fields.get(path, "") == label.get(path, "") else "correct"
        change = Change(entry.document.sha256, action, entry.last, path, label.get(path, ""))  # type: ignore[arg-type]
        entry = desk.change(ANNE, change)
    return entry


def review_of(folder: Path, scans: Path, audited: int = 1) -> ReviewStore:
    """A finished review of drawn receipts that were read as empty, `audited` of them accepted."""
    store = ReviewStore.begin(folder / "corrections.db", {"extract": FIELDS})
    for number, file in enumerate(sorted((scans / "images").iterdir())):
        sample = Sample(file.stem, (Media("image", file),), extra={"file": file.name})
        reading = {"fields": dict.fromkeys(FIELDS, ""), "text": "{}"}
        store.add(make_document(sample, reading, "first", folder), "audit" if number < audited else "doubtful", 1.0)
    finish(store, labels_of(scans))
    return store


@pytest.mark.slow
def test_corrections_are_learned_and_audited_documents_calibrate(
    receipts: Path, new_receipts: Path, tmp_path: Path
) -> None:
    store = review_of(tmp_path / "first-review", new_receipts)
    recipe = recipe_file(tmp_path, receipts)
    plain, _ = prepare(resolve(read_recipe(recipe)), decode=False)
    source = f'data.sources=[{{"name": "first-review", "train": "{store.path}"}}]'
    splits, validation = prepare(resolve(read_recipe(recipe, [source])), decode=False)
    assert not validation.errors()
    ids = [[sample.id for sample in part] for part in (splits.train, splits.held_out)]
    assert ids == [[sample.id for sample in part] for part in (plain.train, plain.held_out)]  # the split stays
    labels = {
        Path(name).stem: {field: str(label[field]) for field in FIELDS}
        for name, label in labels_of(new_receipts).items()
    }
    learned = {item.id.partition("/")[2]: json.loads(item.answer or "") for item in splits.mixed_samples}
    assert len(learned) == 3 and learned == {name: labels[name] for name in learned}
    assert len(splits.dev) == len(plain.dev) + 1 and splits.dev[-1].extra["audited"] is True
    reviewed = replace(splits, train=(), phrased=())
    rejected = rejected_replies(None, None, reviewed, None, None)  # type: ignore[arg-type]
    assert set(rejected.values()) == {"{}"} and len(rejected) == 3  # each correction is a preference pair


@pytest.mark.slow
def test_a_document_that_is_held_out_is_refused_by_name(receipts: Path, tmp_path: Path) -> None:
    store = review_of(tmp_path / "first-review", receipts, audited=0)
    recipe = recipe_file(tmp_path, receipts)
    source = f'data.sources=[{{"name": "first-review", "train": "{store.path}"}}]'
    with pytest.raises(DataError) as refusal:
        prepare(resolve(read_recipe(recipe, [source])), decode=False)
    held_out = [sample.id for sample in read_samples(receipts).samples if sample.split == "dev"]
    assert all(f"the same file as {name}, held out in this recipe" in str(refusal.value) for name in held_out)
    splits, _ = prepare(resolve(read_recipe(recipe, [source])), exclude_faulty=True, decode=False)
    excluded = {item.id: item.reason for item in splits.excluded}
    assert len(splits.held_out) == 4 and sum("in this recipe" in reason for reason in excluded.values()) == 4
    dev = {sample.id for sample in splits.dev}
    assert dev and all("for the calibration" in excluded[f"first-review/{name}"] for name in dev)


@pytest.mark.slow
def test_the_whole_loop(
    receipts: Path,
    new_receipts: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_file(tmp_path, receipts, tiny_model_folder)
    assert run_command(["run", str(recipe)]) == 0
    run = tmp_path / "runs" / "first"
    database = tmp_path / "runs" / "first-review" / "corrections.db"
    trained = next(sample for sample in read_samples(receipts).samples if sample.split == "train")
    scans = [str(new_receipts / "images"), str(trained.media[0].path)]
    export = ["--export", str(tmp_path / "out" / "labels.jsonl")]
    assert run_command(["run", str(recipe), "--with", str(database)]) == 2  # nothing is there yet
    assert run_command(["review", str(run), *scans, *export]) == 0
    store = ReviewStore(database)
    assert store.progress().waiting >= 4
    assert run_command(["next", str(run), *scans]) == 0
    ranked = [row for _, row in read_jsonl(run.with_name("first-next") / "next.jsonl")]
    assert len(ranked) == 5 and ranked[0]["worth"] >= ranked[-1]["worth"] and ranked[0]["rank"] == 1
    assert ranked[-1]["file"] == scans[1] and ranked[-1]["distance"] < 1e-6  # one of the training files
    app = TestClient(make_app(Desk(store), ServeSettings(), name="first", next_step=""), base_url="http://localhost")
    shown = app.post("/api/take", json={"session": "tab", "reviewer": "Anne"}).json()["document"]
    assert set(shown["values"]) == set(FIELDS) and shown["calibrated"] is False
    finish(store, labels_of(new_receipts) | labels_of(receipts))
    assert run_command(["run", str(recipe), "--with", str(database)]) == 0
    second = tmp_path / "runs" / f"first-with-{store.progress().done}"
    facts = read_json(second / "data.json")["reviews"]["first-review"]
    assert facts["learned"] == store.progress().done and facts["corrected"] == store.progress().corrected
    capsys.readouterr()
    assert run_command(["compare", str(run), str(second)]) == 0
    output = capsys.readouterr().out
    assert f"also learned {facts['learned']} documents of first-review ({facts['corrected']} values corrected" in output
