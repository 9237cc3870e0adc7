"""Files are whole or absent, JSON is strict, and packed files have limits."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.core import io
from mllm_tailor.core.errors import DataError, MissingFileError, RecipeError
from mllm_tailor.core.io import (
    atomic_file,
    atomic_folder,
    fingerprint,
    read_json,
    read_jsonl,
    read_lines,
    remove_folder,
    restore_partials,
    walk,
    write_atomic,
)
from mllm_tailor.core.strict_json import MAX_DEPTH, dump_json, parse_json, repair_json
from mllm_tailor.recipe import read_recipe

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.slow
@given(VALUES)
def test_whatever_can_be_written_is_read_back(value: object) -> None:
    assert parse_json(dump_json(value)) == value == repair_json(dump_json(value))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "a": 2}', "`a` stands twice"),
        ('[{"b": {"x": 1, "x": 1}}]', "`x` stands twice"),
        ("1e999", "not a number JSON can hold"),
        ("[-1e999]", "not a number JSON can hold"),
        ("NaN", "not a JSON value"),
        ("[Infinity]", "not a JSON value"),
        (r'"\ud800"', "lone surrogate"),
        (r'{"\uDfff": 1}', "lone surrogate"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ("9" * 5000, "digits"),
        ("", "Expecting value"),
        ("{'a': 1}", "Expecting"),
    ],
)
def test_what_is_no_json_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_json(text)


def test_nesting_up_to_the_limit_is_read() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert len(parse_json("[" + ",".join(["[]"] * 10 * MAX_DEPTH) + "]")) == 10 * MAX_DEPTH


def test_what_a_model_wrote_is_repaired_and_can_be_written() -> None:
    value = repair_json(r'{"a": 1, "a": "\ud800x", "b": [1e999, -1e999, 2.5]}')
    assert value == {"a": "�x", "b": [None, None, 2.5]}
    assert parse_json(dump_json(value)) == value
    with pytest.raises(ValueError, match="not a JSON value"):
        repair_json("NaN")


def test_documents_name_their_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(MissingFileError, match=r"a\.json: no such file"):
        read_json(file)
    for content, problem in ((b"\xff\xfe", "not UTF-8"), (b'{"a": 1, "a": 1}', "twice"), (b"[1", "not valid JSON")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.json: .*{problem}"):
            read_json(file)
    file.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(file) == [1]
    with pytest.raises(DataError, match="over the limit of 2 "):
        read_json(file, limit=2)
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)


def test_rows_are_numbered_and_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \r\n{"a": 2}')
    assert list(read_jsonl(file)) == [(1, {"a": 1}), (4, {"a": 2})]
    file.write_bytes(b'{"a": 1}\n{"a": \xff}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8"):
        list(read_jsonl(file))
    file.write_bytes(b"1\n" + b"x" * 50 + b"\n2\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2: a line of over 40 bytes"):
        list(read_lines(file, limit=40))
    assert len(list(read_lines(file, limit=50 + 1))) == 3


@pytest.mark.slow
def test_packed_rows_are_limited_by_their_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "UNPACKED_FREE", 1 << 16)
    rows = [json.dumps({"a": math.sin(number)}) for number in range(20_000)]
    good, bomb = tmp_path / "good.jsonl.gz", tmp_path / "bomb.jsonl.gz"
    good.write_bytes(gzip.compress("\n".join(rows).encode()))
    assert sum(1 for _ in read_lines(good)) == 20_000
    bomb.write_bytes(gzip.compress(b'{"a": 1}\n' + b"\n" * (1 << 24)))
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz:\d+: unpacks to over 100 times its size"):
        list(read_lines(bomb))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(good.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz:\d+: packed with gzip, but damaged or cut off"):
        list(read_lines(cut))


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "a.txt"
    write_atomic(file, "old")
    with pytest.raises(KeyError), atomic_file(file) as partial:
        partial.write_text("half")
        raise KeyError
    assert file.read_text() == "old" and os.listdir(file.parent) == ["a.txt"]
    write_atomic(file, b"new")
    assert file.read_bytes() == b"new" and os.listdir(file.parent) == ["a.txt"]


def fill(target: Path, content: str, *, replace: bool = True) -> None:
    with atomic_folder(target, replace=replace) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "a.txt").write_text(content)


def test_folders_are_replaced_whole_or_kept(tmp_path: Path) -> None:
    target = tmp_path / "model.v1"
    fill(target, "one")
    fill(target, "two")
    assert (target / "inner" / "a.txt").read_text() == "two"
    fill(target, "three", replace=False)
    assert (target / "inner" / "a.txt").read_text() == "two", "somebody else's is as good"
    with pytest.raises(KeyError), atomic_folder(target) as partial:
        (partial / "half").write_text("")
        raise KeyError
    assert os.listdir(target) == ["inner"] and os.listdir(tmp_path) == ["model.v1"]
    remove_folder(target)
    assert os.listdir(tmp_path) == []


def test_many_threads_write_one_folder(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=fill, args=(tmp_path / "a", f"{number}"), kwargs={"replace": False})
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a" / "inner" / "a.txt").read_text().isdigit()


KILLED = """
import os, pathlib, sys
from mllm_tailor.core import io
target = pathlib.Path(sys.argv[1])
moves = int(sys.argv[2])
rename = pathlib.Path.rename
def dying(self, *words):
    global moves
    if not moves:
        os._exit(9)
    moves -= 1
    return rename(self, *words)
pathlib.Path.rename = dying
with io.atomic_folder(target) as partial:
    (partial / "a.txt").write_text("new")
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_writer_killed_between_its_renames_loses_nothing(tmp_path: Path, moves: int) -> None:
    target = tmp_path / "step-1"
    target.mkdir()
    (target / "a.txt").write_text("old")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(target), str(moves)], timeout=60)
    assert ended.returncode == (0 if moves == 2 else 9)
    restore_partials(tmp_path)
    assert (target / "a.txt").read_text() == ("new" if moves == 2 else "old")
    assert os.listdir(tmp_path) == ["step-1"]


def test_what_the_living_write_is_left_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as partial:
        restore_partials(tmp_path)
        assert partial.is_dir()
    stranger = tmp_path / ".somebody.partial"
    stranger.mkdir()
    restore_partials(tmp_path)
    assert stranger.is_dir()


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(VALUES | st.binary(), max_size=4), st.lists(VALUES | st.binary(), max_size=4))
def test_fingerprints_differ_just_where_parts_do(first: list[object], second: list[object]) -> None:
    def canonical(parts: list[object]) -> list[object]:
        return [part if isinstance(part, bytes) else json.dumps(part, sort_keys=True) for part in parts]

    assert (fingerprint(*first) == fingerprint(*second)) == (canonical(first) == canonical(second))


def test_fingerprints_ignore_the_order_of_keys_and_refuse_objects() -> None:
    assert fingerprint({"a": 1, "b": Path("x")}) == fingerprint({"b": "x", "a": 1})
    assert fingerprint("ab", "c") != fingerprint("a", "bc") and fingerprint(b"1") != fingerprint(1)
    with pytest.raises(TypeError, match="object has no fingerprint"):
        fingerprint([object()])


def test_a_document_over_the_limit_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    with file.open("wb") as stream:
        stream.truncate(12 * 2**30)
    with pytest.raises(DataError, match=r"labels\.json: 12,884,901,888 bytes, over the limit of"):
        read_json(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match=r"r\.yaml: a pipe or device"):
        read_recipe(tmp_path / "r.yaml")
    with pytest.raises(DataError, match=r"r\.yaml: a pipe or device"):
        read_json(tmp_path / "r.yaml")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind root, so the system's answer is made up."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a.png").touch()
    assert [(Path(root).name, names) for root, _, names in walk(tmp_path)][-1] == ("b", [])
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(DataError, match="b: cannot be listed"):
        list(walk(tmp_path))


def test_the_current_folder_can_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_folder(Path()) as partial:
        (partial / "a").touch()
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["a"]
