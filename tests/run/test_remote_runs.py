"""Runs, data, inputs and parts of predictions in a store: fsspec's memory, with the functions that commands call."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from mllm_tailor.core import remote
from mllm_tailor.core.errors import DataError, RecipeError, RunError, StorageError
from mllm_tailor.core.io import write_json, write_jsonl
from mllm_tailor.core.manifest import create, forget, record, verify
from mllm_tailor.core.sample import Prediction
from mllm_tailor.data import propose_recipe, read_samples
from mllm_tailor.generation import read_inputs, with_files
from mllm_tailor.launch import ray_predict
from mllm_tailor.recipe import dump_recipe, make_recipe
from mllm_tailor.run import new_files
from mllm_tailor.run.output_file import output_path
from mllm_tailor.run.parts import in_blocks, keep_present
from mllm_tailor.run.publish import check_store, publish_run
from mllm_tailor.run.resolve import resolve_saved
from mllm_tailor.run.run_dir import RunFolder

DATA = "memory://bucket/receipts"


@pytest.fixture
def store(tmp_path):
    """A bucket with a labelled folder, a folder of scans, and a file outside of both."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    system = MemoryFileSystem()
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    picture = (tmp_path / "picture.png").read_bytes()
    for name in ("receipts/img/0.png", "receipts/img/1.png", "scans/a.png", "scans/b.png", "scans/in/c.png", "x.png"):
        system.pipe_file(f"/bucket/{name}", picture)
    system.pipe_file("/bucket/scans/notes.txt", b"")
    rows = [{"image": f"img/{number}.png", "total": "1.00"} for number in range(2)]
    system.pipe_file("/bucket/receipts/labels.jsonl", lines(rows))
    yield system
    MemoryFileSystem.store.clear()


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_labelled_data_are_read_from_a_store(store):
    dataset = read_samples(DATA)
    assert [sample.media[0].path.read_bytes()[:4] for sample in dataset.samples] == [b"\x89PNG"] * 2
    assert f'train: "{DATA}"' in propose_recipe(dataset, [])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("memory://bucket/x.png", "lies outside the data.*data.media_root"),
        ("memory://bucket/receipts/../x.png", "no file of this machine"),
        ("memory://elsewhere/receipts/img/0.png", "lies outside the data"),
        ("http://169.254.169.254/a.png", "is a web address"),
        ("file:///etc/a.png", "leads out of"),
    ],
)
def test_rows_name_files_of_their_own_folder_only(store, tmp_path, name, said):
    for row, allowed in ((f"{DATA}/img/1.png", True), (name, False)):
        store.pipe_file("/bucket/receipts/labels.jsonl", lines([{"image": row, "total": "1.00"}] * 2))
        if allowed:
            assert read_samples(DATA).samples[0].media[0].path == remote.copy_of(row)
        else:
            with pytest.raises(DataError, match=f"labels.jsonl:1: .*{said}"):
                read_samples(DATA)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "labels.jsonl").write_bytes(lines([{"image": name, "total": "1.00"}]))
    with pytest.raises(DataError, match=said):
        read_samples(tmp_path / "local")
    with pytest.raises(DataError, match=said):
        read_samples(tmp_path / "local", media_root=DATA)


def test_rows_here_name_files_of_a_store_that_is_the_media_root(store, tmp_path):
    (tmp_path / "labels.jsonl").write_bytes(lines([{"image": "memory://bucket/scans/in/c.png", "total": "1.00"}]))
    (sample,) = read_samples(tmp_path / "labels.jsonl", media_root="memory://bucket/scans").samples
    assert sample.media[0].path.is_file()


def test_inputs_in_a_store(store, tmp_path):
    samples = read_inputs(["memory://bucket/scans", "memory://bucket/x.png", "memory://bucket/none.png"])
    assert [sample.extra["file"] for sample in samples] == [
        "a.png", "b.png", "in/c.png", "memory://bucket/x.png", "memory://bucket/none.png",
    ]  # fmt: skip
    assert "no such file" in samples[4].extra["problem"] and all(
        sample.media[0].path.is_file() for sample in samples[:4]
    )


def test_files_of_a_listed_folder_are_fetched_later_and_one_that_is_gone_states_so(store):
    samples = read_inputs(["memory://bucket/scans"], fetch=False)
    assert [sample.media[0].path.exists() for sample in samples] == [False] * 3
    store.rm_file("/bucket/scans/b.png")
    samples = [replace(sample, id="same") for sample in samples]
    first, gone, third = with_files(samples)
    assert first.media[0].path.is_file() and third.media[0].path.is_file()
    assert "scans/b.png: no such file" in gone.extra["problem"] and not gone.media


def test_manifests_name_files_of_a_store(store, tmp_path):
    rows = [{"image": "a.png"}, {"image": "memory://bucket/scans/in/c.png"}, {"image": "memory://bucket/x.png"}]
    store.pipe_file("/bucket/scans/todo.jsonl", lines([*rows, {"image": "/etc/a.png"}]))
    here = tmp_path / "todo.jsonl"
    here.write_bytes(lines([rows[1], {"image": "http://169.254.169.254/a.png"}]))
    inner, url, outside, absolute, own, web = read_inputs(["memory://bucket/scans/todo.jsonl", here])
    assert all(sample.media[0].path.is_file() for sample in (inner, url, own))
    assert "outside the folder of its manifest" in outside.extra["problem"]
    assert "leads out of" in absolute.extra["problem"] and "web address" in web.extra["problem"]


def finished_run(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.path.mkdir(parents=True)
    create(run.path)
    run.recipe_file.write_text(dump_recipe(make_recipe({"data": DATA, "task": {"extract": {"total": "amount"}}})))
    write_json(run.scores, {})
    run.report.write_text("<html>")
    write_json(run.adapter / "tailor.json", {})
    record(run.path, run.recipe_file, run.scores, run.report, run.adapter)
    return run


def test_a_finished_run_is_published_once_and_verified_where_it_is_read(store, tmp_path):
    run = finished_run(tmp_path / "runs" / "receipts")
    (run.path / "checkpoints" / "step-1").mkdir(parents=True)
    (run.path / "checkpoints" / "step-1" / "weights").write_text("large")
    (run.path / ".lock").touch()
    forget(run.path, run.report)
    assert publish_run(run, "memory://bucket/runs") is None  # not finished
    record(run.path, run.report)
    url = publish_run(run, "memory://bucket/runs/")
    assert url == "memory://bucket/runs/receipts"
    assert {name.removeprefix("/bucket/runs/receipts/") for name in store.store if "/runs/" in name} == {
        "recipe.yaml", "manifest.json", "scores.json", "report.html", "adapter/tailor.json",
    }  # fmt: skip
    copy = remote.fetch_run(url)
    (copy / "merged-1").mkdir()
    (copy / "merged-1" / "model").write_text("made here")
    assert remote.fetch_run(url) == copy and (copy / "merged-1" / "model").is_file()
    verify(copy, copy / "adapter", copy / "report.html")
    store.pipe_file("/bucket/runs/receipts/adapter/tailor.json", b"[]")
    with pytest.raises(RunError, match=r"adapter/tailor.json: damaged"):
        verify(remote.fetch_run(url), copy / "adapter")
    publish_run(run, "memory://bucket/runs")  # the manifest is the same
    assert store.cat_file("/bucket/runs/receipts/adapter/tailor.json") == b"[]"
    run.report.write_text("<html>2")
    record(run.path, run.report)
    publish_run(run, "memory://bucket/runs")
    assert store.cat_file("/bucket/runs/receipts/adapter/tailor.json") == (run.adapter / "tailor.json").read_bytes()


def test_predictions_of_a_run_are_known_again_on_another_machine(store, tmp_path, monkeypatch):
    """What they are known by does not depend on the times of its copy."""
    run = finished_run(tmp_path / "runs" / "receipts")
    publish_run(run, "memory://bucket/runs")
    resolved = resolve_saved(run.recipe())
    keys = set()
    for machine in ("one", "two"):
        monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / machine))
        copy = RunFolder(remote.fetch_run("memory://bucket/runs/receipts"))
        merged = remote.fetch_run("memory://bucket/runs/receipts") / "adapter"
        keys.add((new_files.Predictor(resolved, resolved.mode, copy).key(),
                  new_files.Predictor(resolved.with_model(path=str(merged)), resolved.mode, copy).key()))  # fmt: skip
    assert len(keys) == 1
    write_json(run.adapter / "tailor.json", {"trained": "again"})
    record(run.path, run.adapter)
    publish_run(run, "memory://bucket/runs")
    copy = RunFolder(remote.fetch_run("memory://bucket/runs/receipts"))
    assert new_files.Predictor(resolved, resolved.mode, copy).key() not in {key for pair in keys for key in pair}


def test_a_store_that_cannot_be_written_is_named_before_the_training(store, monkeypatch):
    check_store("memory://bucket/runs", "receipts")
    assert not [name for name in store.store if "/runs/" in name]

    def refuse(*_, **__):
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(MemoryFileSystem, "put_file", refuse)
    with pytest.raises(StorageError, match=r"runs/receipts/\.check: no such bucket"):
        check_store("memory://bucket/runs", "receipts")


def test_settings_of_a_recipe():
    values = {"data": DATA, "task": {"extract": {"total": "amount"}}}
    assert make_recipe({**values, "publish": "s3://bucket/runs"}).publish == "s3://bucket/runs"
    with pytest.raises(RecipeError, match="publish: s3://bucket/runs"):
        make_recipe({**values, "output": "s3://bucket/runs"})
    with pytest.raises(RecipeError, match="`publish` is the URL of a store"):
        make_recipe({**values, "publish": "runs"})


def test_a_file_of_predictions_is_published_when_it_is_whole(store):
    url = "memory://bucket/out/predictions.jsonl"
    with pytest.raises(KeyboardInterrupt), output_path(url) as file:
        write_jsonl(file, [{"id": "half"}])
        raise KeyboardInterrupt
    assert not remote.exists(url)
    with output_path(url) as file:
        assert file.is_file()  # the interrupted command is continued
        write_jsonl(file, [{"id": "whole"}])
    assert b"whole" in store.cat_file("/bucket/out/predictions.jsonl")
    file.unlink()
    with output_path(url) as file:  # from another machine: what would be replaced is looked at first
        assert b"whole" in file.read_bytes()


class Predictor(SimpleNamespace):
    """A model that reads the length of a file."""

    @contextmanager
    def opened(self):
        def predict(samples, keep):
            for sample in samples:
                keep(Prediction(sample.id, str(sample.media[0].path.stat().st_size)))

        yield predict


def read_all(out, cache) -> list[dict]:
    """What a call with one worker does, Ray left out. Returns the rows that it has made."""
    folder = ray_predict._begin(out, "key")
    keyed = ray_predict._with_keys(read_inputs(["memory://bucket/scans"], fetch=False))
    changed: list[Path] = []
    kept = keep_present(folder, keyed, changed.append)
    ray_predict._publish_changes(out, changed)
    missing = [item for item in keyed if item.name not in kept]
    run = SimpleNamespace(model=SimpleNamespace(path="tiny"))
    reader = ray_predict.Reader(Predictor(run=run, tuned=None, trained_in=None), out, (str(Path.cwd()), str(cache)))
    for block in in_blocks(missing, 2):
        assert reader.read(block) == ([], None)
    return [item.name[1] for item in missing]


def test_parts_in_a_store_are_read_on_from_any_machine(store, cache, tmp_path, monkeypatch):
    out = "memory://bucket/predictions"
    assert read_all(out, cache) == ["a.png", "b.png", "in/c.png"]
    rows = [
        json.loads(line) for name in store.glob("/bucket/predictions/part-*") for line in store.cat(name).splitlines()
    ]
    assert sorted(row["file"] for row in rows) == ["a.png", "b.png", "in/c.png"]
    leftover = remote.copy_of(f"{out}/part-0.jsonl")
    leftover.write_text("a part that was never published")
    assert read_all(out, cache) == []
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "another"))
    Image.new("RGB", (9, 9), "red").save(tmp_path / "picture.png")
    store.put_file(str(tmp_path / "picture.png"), "/bucket/scans/b.png")
    assert read_all(out, tmp_path / "another") == ["b.png"]
    parts = {name: store.cat(name).splitlines() for name in store.glob("/bucket/predictions/part-*")}
    files = sorted(json.loads(line)["file"] for rows in parts.values() for line in rows)
    assert files == ["a.png", "b.png", "in/c.png"]
    with pytest.raises(RunError, match="another model"):
        ray_predict._begin(out, "another key")
