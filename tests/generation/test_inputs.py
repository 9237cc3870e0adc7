"""Inputs of `tailor predict`: files, folders and manifests, with faults as rows of their own."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from mllm_tailor.core import io
from mllm_tailor.generation import inputs, read_inputs


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def test_files_and_folders_in_order(tmp_path):
    late, early = picture(tmp_path / "z.png"), picture(tmp_path / "folder" / "a.jpg")
    picture(tmp_path / "folder" / "inner" / "b.png")
    picture(tmp_path / "folder" / ".thumbnails" / "a.png")
    (tmp_path / "folder" / "a.json").write_text("{}")
    samples = read_inputs([late, tmp_path / "folder"])
    assert [sample.id for sample in samples] == ["z", "a", "b"]
    assert samples[1].media[0].path == early.resolve() and samples[1].media[0].kind == "image"


def test_colliding_stems_become_different_ids(tmp_path):
    paths = [picture(tmp_path / name) for name in ("1/a.png", "1/a.jpg", "2/a.png", "2/a.jpg")]
    samples = read_inputs([*paths, paths[0]])
    assert [sample.id for sample in samples] == ["a", "a.jpg", "a.png", "2/a.jpg", "1/a.png"]


def test_manifest(tmp_path):
    picture(tmp_path / "images" / "a.png")
    uri = "data:image/png;base64," + base64.b64encode((tmp_path / "images" / "a.png").read_bytes()).decode()
    rows = [
        {"image": "images/a.png", "question": "How much?", "id": "first"},
        {"image": ["images/a.png", uri]},
        {"audio": "a.wav"},
    ]
    manifest = tmp_path / "todo.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    first, second, third = read_inputs([manifest])
    assert (first.id, first.prompt, first.source) == ("first", "How much?", f"{manifest}:1")
    assert (second.id, len(second.media)) == ("a", 2) and second.media[1].data is not None
    assert third.media[0].kind == "audio"


def test_a_manifest_is_read_as_rows_of_labels_are(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    turns = [{"from": "human", "value": "<image>First?"}, {"from": "gpt", "value": "x"}]
    rows = [
        {"image": ["a.png", "b.png"], "question": "Is <image> like <image>?"},
        {"image": "a.png", "question": "Which?", "options": {"B": "q", "A": "p"}, "system": "Be brief."},
        {"image": "a.png", "conversations": [*turns, {"from": "human", "value": "And?"}]},
    ]
    manifest = tmp_path / "todo.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    placed, options, talk = read_inputs([manifest])
    assert (placed.prompt, placed.positions) == ("Is  like ?", ((0, 3), (0, 9)))
    assert (options.options, options.system) == (("p", "q"), "Be brief.")
    assert (talk.prompt, [turn.text for turn in talk.history], len(talk.media)) == ("And?", ["First?", "x"], 1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("not json", "not valid JSON"),
        ("[1]", "one JSON object"),
        ("{}", "none of image"),
        ('{"image": 3}', "named by paths"),
        ('{"image": "../../etc/passwd"}', "leads out of"),
        ('{"image": "/etc/passwd"}', "leads out of"),
        ('{"image": "data:image/png;base64,%%%"}', "damaged"),
        ('{"image": "a.png", "question": 1}', "should be text"),
        ('{"image": "a.png", "id": NaN}', "not valid JSON"),
        ("\xff", "not valid JSON"),
    ],
)
def test_bad_rows_are_named_and_stop_nothing(tmp_path, row, said):
    picture(tmp_path / "a.png")
    manifest = tmp_path / "todo.jsonl"
    manifest.write_bytes(row.encode("latin-1") + b'\n{"image": "a.png"}\n')
    bad, good = read_inputs([manifest])
    assert f"{manifest}:1: " in bad.extra["problem"] and said in bad.extra["problem"]
    assert good.id == "a" and "problem" not in good.extra


def test_an_absolute_path_is_the_users_own_word(tmp_path):
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "lists").mkdir()
    manifest = tmp_path / "lists" / "todo.jsonl"
    rows = [{"image": str(tmp_path / "elsewhere" / "a.png")}, {"image": str(tmp_path / "elsewhere" / "gone.png")}]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_inputs([manifest])
    assert first.media[0].path == (tmp_path / "elsewhere" / "a.png").resolve() and second.media


def test_missing_and_unknown_files_are_named(tmp_path):
    (tmp_path / "notes.docx").write_text("")
    (tmp_path / "empty").mkdir()
    expected = {
        "gone.png": "no such file",
        "notes.docx": "convert it",
        "empty": "holds no",
        "gone.jsonl": "cannot be opened",
    }
    samples = read_inputs([tmp_path / name for name in expected])
    for sample, (name, said) in zip(samples, expected.items(), strict=True):
        problem = sample.extra["problem"]
        assert problem.startswith(str(tmp_path / name)) and said in problem


def test_everything_in_a_folder_but_labels_and_notes_has_a_row(tmp_path):
    for name in ("a.png", "b.avif", "c.heic", "d.jp2", "e.docx", "f", "g.aiff", "h.svg"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("notes.txt", "labels.jsonl", "LICENSE", ".hidden.png", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    samples = {Path(sample.source).name: sample for sample in read_inputs([tmp_path])}
    assert sorted(samples) == ["a.png", "b.avif", "c.heic", "d.jp2", "e.docx", "f", "g.aiff", "h.svg"]
    unread = {name for name, sample in samples.items() if "is not read — convert it" in sample.extra.get("problem", "")}
    assert unread == {"d.jp2", "e.docx", "f", "h.svg"}


def test_a_link_out_of_the_folder_is_a_row_with_a_problem(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "out.png").write_bytes(b"x")
    (tmp_path / "scans" / "in.png").write_bytes(b"x")
    (tmp_path / "scans" / "link.png").symlink_to("../out.png")
    (tmp_path / "scans" / "same.png").symlink_to("in.png")
    problems = [sample.extra.get("problem", "") for sample in read_inputs([tmp_path / "scans"])]
    assert [bool(problem) for problem in problems] == [False, True, False] and "leads out of" in problems[1]


def test_a_manifest_line_without_end_costs_the_rows_behind_it_alone(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"x")
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"image": "a.png"}\n{"image": "a.png", "question": "' + b"x" * 200 + b'"}\n')
    monkeypatch.setattr(inputs, "read_lines", lambda path: io.read_lines(path, limit=100))
    first, second = read_inputs([file])
    assert not first.extra.get("problem") and "a line of over 100 bytes" in second.extra["problem"]
    assert second.source == f"{file}:2"


def test_hidden_files_and_folders_that_cannot_be_listed_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    for name in ("a.png", ".b.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "closed" and access(path, mode))
    samples = read_inputs([tmp_path])
    assert [sample.extra["file"] for sample in samples] == ["closed", "a.png"]
    assert "cannot be listed" in samples[0].extra["problem"] and ".b.png" in caplog.text
