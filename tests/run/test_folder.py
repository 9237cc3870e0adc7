"""The run folder: one owner, checksums of everything in it, and data that are known again."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from PIL import Image

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.manifest import MANIFEST, create, forget, present, record, recorded, verify
from mllm_tailor.core.sample import Prediction
from mllm_tailor.recipe import make_recipe, stage_recipes
from mllm_tailor.run.data_changes import (
    changed_files,
    fingerprint_data,
    made_from_other_data,
    reconcile,
    refuse_replaced,
    unchanged,
)
from mllm_tailor.run.data_record import write_held_out
from mllm_tailor.run.dataset import Splits, prepare
from mllm_tailor.run.environment import read_environment
from mllm_tailor.run.fingerprints import held_out_contents, read_fingerprints
from mllm_tailor.run.lock import OWNER, owned
from mllm_tailor.run.predict import write_predictions
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.run.run_dir import RunFolder, finished, open_run, own_run, read_predictions, start_run

# --- One owner -------------------------------------------------------------------------------------------------------


def _hold(folder: Path, held: Event, release: Event) -> None:
    with owned(folder):
        held.set()
        release.wait(60)


def test_a_second_command_is_told_who_holds_the_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "a", held, release))
    other.start()
    assert held.wait(60)
    with pytest.raises(RunError, match=rf"process {other.pid} on .* since \d{{4}}-"), owned(tmp_path / "a"):
        pass
    os.kill(other.pid or 0, 9)  # a crash releases it
    other.join()
    with owned(tmp_path / "a"), owned(tmp_path / "a"):
        assert json.loads((tmp_path / "a" / OWNER).read_text())["process"] == os.getpid()
    assert not (tmp_path / "a" / OWNER).exists()


def test_a_fresh_run_sets_the_old_folder_aside(tmp_path: Path) -> None:
    recipe = make_recipe({"name": "a", "data": "x", "task": "answer", "output": str(tmp_path)})
    with own_run(recipe) as run:
        (run.path / "log.jsonl").write_text("old")
    with own_run(recipe, fresh=True) as run:
        assert not run.log.exists() and recorded(run.path, run.recipe_file)
    assert (tmp_path / "a.old1" / "log.jsonl").read_text() == "old"
    assert {file.name for file in (tmp_path / "a.old1").iterdir()} == {"log.jsonl", "recipe.yaml", MANIFEST}


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    """Killed before the recipe was written, a folder is still free; nothing half written stays beside whole files."""
    recipe = make_recipe({"name": "a", "data": "x", "task": "answer", "output": str(tmp_path)})
    host = socket.gethostname().replace(".", "-")[:40]
    left = [f".{name}.new.{host}.4194303.0.partial" for name in ("recipe.yaml", MANIFEST)]  # nobody has this number
    for inside in (".", "predictions"):
        (tmp_path / "a" / inside).mkdir(parents=True, exist_ok=True)
        for name in left:
            (tmp_path / "a" / inside / name).write_text("half")
        with own_run(recipe) as run:
            assert run.recipe_file.exists() and not list(run.path.rglob("*.partial"))


# --- Checksums -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path: Path) -> RunFolder:
    """A run folder with an adapter and scores."""
    recipe = make_recipe({"name": "a", "data": "x", "task": "answer", "output": str(tmp_path)})
    run = start_run(recipe)
    run.adapter.mkdir()
    (run.adapter / "weights.safetensors").write_bytes(bytes(range(256)))
    for path in (run.scores, run.report, run.training):
        path.write_text("{}")
    record(run.path, run.adapter, run.scores, run.report, run.training)
    return run


def test_every_flipped_byte_is_noticed(sealed: RunFolder) -> None:
    for file in (path for path in sealed.path.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 40)):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(RunError, match=rf"{file.name}: damaged .*(put back|begin anew)"):
                verify(sealed.path)
                verify(sealed.path, sealed.adapter)
        file.write_bytes(whole)
    verify(sealed.path)
    verify(sealed.path, sealed.adapter)


def test_lost_files_are_named_or_written_again(sealed: RunFolder) -> None:
    assert finished(sealed)
    (sealed.adapter / "weights.safetensors").unlink()
    assert not present(sealed.path, sealed.adapter) and not finished(sealed)  # the same command writes it again
    with pytest.raises(RunError, match=r"weights\.safetensors: missing"):
        verify(sealed.path, sealed.adapter)
    verify(sealed.path, sealed.adapter, absent=True)
    sealed.report.unlink()
    assert not finished(sealed)
    with pytest.raises(RunError, match=r"report\.html: missing"):
        open_run(sealed.path)
    (sealed.path / MANIFEST).unlink()
    with pytest.raises(RunError, match=f"{MANIFEST}: missing"):
        open_run(sealed.path)


def test_a_run_is_finished_only_with_all_its_stages(tmp_path: Path) -> None:
    stages = [{"name": name} for name in "xy"]
    recipe = make_recipe({"name": "a", "data": "x", "task": "answer", "output": str(tmp_path), "stages": stages})
    folders = [start_run(part) for part in (recipe, *stage_recipes(recipe))]
    for run in folders:
        run.scores.write_text("{}")
        run.report.write_text("{}")
        record(run.path, run.scores, run.report)
    assert finished(folders[0])
    shutil.rmtree(folders[1].path)
    assert not finished(folders[0])


def test_what_is_written_again_leaves_the_manifest_first(sealed: RunFolder) -> None:
    forget(sealed.path, sealed.scores, sealed.adapter)
    sealed.scores.write_text("[]")
    verify(sealed.path)
    assert present(sealed.path, sealed.scores) and not recorded(sealed.path, sealed.scores)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1, "sha256": "", "files": {}}', '{"format": 2}'])
def test_a_manifest_of_another_shape_is_damaged(text: str, tmp_path: Path) -> None:
    create(tmp_path)
    verify(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(RunError, match=f"{MANIFEST}: damaged"):
        verify(tmp_path)


def test_a_damaged_row_of_predictions_is_named(tmp_path: Path) -> None:
    for row in (
        '{"ix": "b"}',
        '{"id": "b", "text": "", "raw": {"total": {}}}',
        '{"id": "b", "text": "", "raw": {"total": null}}',
    ):
        (tmp_path / "p.jsonl").write_text('{"id": "a", "text": ""}\n' + row + "\n")
        with pytest.raises(RunError, match=r"p\.jsonl:2: not a prediction"):
            read_predictions(tmp_path / "p.jsonl")


def test_files_of_a_run_of_another_shape_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.environment.write_text("null")
    with pytest.raises(RunError, match=r"environment\.json: should be a JSON object"):
        read_environment(folder.environment)
    folder.fingerprints.write_text('{"id": "a", "sha256": "x"}\n{"id": "b"}\n')
    with pytest.raises(RunError, match=r"data_fingerprints\.jsonl:2: not a fingerprint"):
        read_fingerprints(folder)


# --- Data ------------------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(8):
        Image.new("RGB", (40 + number, 30), (30 * number, 9, 9)).save(folder / "images" / f"{number}.png")
        split = "test" if number < 3 else "train"
        rows.append({"file_name": f"images/{number}.png", "id": str(number), "total": f"{number}.00", "split": split})
    write_rows(folder, rows)


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Data:
    """A small data set and a run over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "data"
        write_data(self.folder)
        self.recipe = make_recipe(
            {
                "name": "a",
                "data": {"train": str(self.folder), "held_out": {"column": "split", "value": "test"}, "dev": 0},
                "task": {"extract": {"total": "string"}},
                "output": str(folder),
            }
        )
        self.run: ResolvedRun = resolve(self.recipe)
        self.run_folder = start_run(self.recipe)

    def splits(self) -> Splits:
        return prepare(self.run, exclude_faulty=True, decode=False)[0]

    def rows(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.folder / "metadata.jsonl").read_text().splitlines()]

    def replace_image(self, number: int) -> None:
        Image.new("RGB", (40 + number, 30), (1, 2, 250)).save(self.folder / "images" / f"{number}.png")

    def edit_label(self, number: int) -> None:
        write_rows(self.folder, [row | ({"total": "9.99"} if row["id"] == str(number) else {}) for row in self.rows()])

    def remove(self, number: int) -> None:
        write_rows(self.folder, [row for row in self.rows() if row["id"] != str(number)])

    def predict(self, *names: str) -> None:
        """As if these systems had predicted the held-out samples."""
        for name in names:
            rows = [Prediction(sample.id, "", {"total": "1"}) for sample in self.splits().held_out]
            write_predictions(self.run_folder.predictions(name), rows)

    def train(self) -> None:
        """As if training had ended."""
        self.run_folder.adapter.mkdir()
        for path in (self.run_folder.training, self.run_folder.adapter / "weights"):
            path.write_text("{}")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    made = Data(tmp_path)
    reconcile(made.run_folder, made.splits())
    return made


CHANGES = [("replace_image", "file replaced"), ("edit_label", "label or question edited"), ("remove", "removed")]


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("number", [1, 5])  # held out, training
def test_a_change_of_data_that_were_used_is_named_and_refused(data: Data, change: str, words: str, number: int) -> None:
    data.predict("base_constrained", "baseline_constant")
    assert reconcile(data.run_folder, data.splits()) == []
    getattr(data, change)(number)
    with pytest.raises(RunError, match=rf"{number}.*{words}(.|\n)*--accept-changes") as caught:
        reconcile(data.run_folder, data.splits())
    assert str(caught.value).count(words) == 1


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_split_that_was_not_used_yet_may_change(
    data: Data, change: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    data.predict("base_constrained")  # nothing of the training samples is used yet
    getattr(data, change)(5)
    reconcile(data.run_folder, data.splits())
    assert words in caplog.text and read_predictions(data.run_folder.predictions("base_constrained"))
    assert reconcile(data.run_folder, data.splits()) == []  # they are what is known now


def test_accepted_changes_remove_what_followed_from_them(data: Data) -> None:
    run = data.run_folder
    data.predict("base_constrained", "baseline_constant", "tuned_constrained")
    data.train()
    write_held_out(run, data.run.task, data.splits())
    record(run.path, run.training, run.adapter, run.held_out)
    data.replace_image(1)
    reconcile(run, data.splits(), accept=True)
    for system in ("base_constrained", "tuned_constrained"):
        assert [row.id for row in read_predictions(run.predictions(system))] == ["0", "2"]
    assert run.adapter.exists() and not run.held_out.exists() and not run.predictions("baseline_constant").exists()
    data.edit_label(5)
    reconcile(run, data.splits(), accept=True)
    assert not run.adapter.exists() and not run.training.exists() and not run.predictions("tuned_constrained").exists()
    assert len(read_predictions(run.predictions("base_constrained"))) == 2
    verify(run.path)


def test_files_that_changed_are_named_without_reading_the_data_set(data: Data) -> None:
    assert changed_files(data.run_folder) == []
    os.utime(data.folder / "images" / "4.png")  # touched, not changed
    assert changed_files(data.run_folder) == []
    data.replace_image(5)
    data.edit_label(1)
    (data.folder / "images" / "2.png").unlink()
    lines = " ".join(changed_files(data.run_folder))
    assert "5.png: replaced" in lines and "metadata.jsonl: edited" in lines and "2.png: no longer there" in lines
    shutil.rmtree(data.folder)
    assert len(changed_files(data.run_folder)) == 1


def test_samples_whose_files_changed_are_left_out_and_named(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    held_out = data.splits().held_out
    assert unchanged(data.run_folder, held_out) == list(held_out) and not caplog.text
    data.replace_image(1)
    (data.folder / "images" / "2.png").unlink()
    assert [sample.id for sample in unchanged(data.run_folder, held_out)] == ["0"]
    assert "1.png: replaced" in caplog.text and "2.png: no longer there" in caplog.text
    data.replace_image(0)
    with pytest.raises(RunError, match="restore them"):
        unchanged(data.run_folder, held_out)


def test_lost_fingerprints_are_not_written_anew_in_silence(data: Data) -> None:
    data.run_folder.fingerprints.unlink()
    with pytest.raises(RunError, match=r"data_fingerprints\.jsonl: missing"):
        reconcile(data.run_folder, data.splits())


def test_data_that_a_fold_has_used_may_not_change(data: Data) -> None:
    """Nothing in the run itself was computed from them yet; its pooled scores will be."""
    fold = start_run(data.recipe.model_copy(update={"name": "fold-1", "output": str(data.run_folder.path)}))
    reconcile(fold, data.splits())
    write_predictions(fold.predictions("base_constrained"), [Prediction("0", "", {})])
    data.replace_image(5)
    with pytest.raises(RunError, match=r"5\.png: 5 \(train\): file replaced"):
        reconcile(data.run_folder, data.splits())
    assert made_from_other_data([fold], fingerprint_data(data.splits())) == [fold]
    reconcile(fold, data.splits(), accept=True)
    assert made_from_other_data([fold], fingerprint_data(data.splits())) == []


def test_a_file_that_is_replaced_while_the_run_reads_it_is_named(data: Data) -> None:
    (data.folder / "images" / "2.png").unlink()  # it was read before
    refuse_replaced(data.run_folder)
    data.replace_image(1)
    with pytest.raises(RunError, match=r"1\.png: replaced(.|\n)*--accept-changes"):
        refuse_replaced(data.run_folder)


def test_held_out_samples_of_two_runs_are_known_by_labels_and_bytes(data: Data, tmp_path: Path) -> None:
    write_held_out(data.run_folder, data.run.task, data.splits())
    shutil.copytree(data.folder, tmp_path / "moved")
    data.folder = tmp_path / "moved"
    data.replace_image(1)
    data.edit_label(2)
    recipe = data.recipe.model_copy(update={"name": "b"})
    other = start_run(recipe)
    settings = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": str(data.folder)})})
    splits = prepare(resolve(settings), exclude_faulty=True, decode=False)[0]
    reconcile(other, splits)
    write_held_out(other, data.run.task, splits)
    before, after = held_out_contents(data.run_folder), held_out_contents(other)
    assert [name for name in before if before[name] == after[name]] == ["0"]


def test_inline_media_count_by_their_bytes(data: Data) -> None:
    splits = data.splits()
    inline = [
        replace(sample, media=tuple(replace(media, path=None, data=b"\x89one") for media in sample.media))
        for sample in splits.held_out
    ]
    other = [
        replace(sample, media=tuple(replace(media, data=b"\x89two") for media in sample.media)) for sample in inline
    ]
    run = start_run(data.recipe.model_copy(update={"name": "b"}))
    reconcile(run, replace(splits, held_out=tuple(inline)))
    assert len(reconcile(run, replace(splits, held_out=tuple(other)))) == 3
