"""Files of a store: copied whole or not at all, used again while unchanged, and published. In fsspec's memory."""

from __future__ import annotations

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mllm_tailor.core import remote
from mllm_tailor.core.errors import DataError, StorageError


@pytest.fixture
def store():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    system = MemoryFileSystem()
    for name, content in {"labels.jsonl": b"{}", "img/a.png": b"123", "img/b.png": b"4"}.items():
        system.pipe_file(f"/bucket/data/{name}", content)
    yield system
    MemoryFileSystem.store.clear()


@pytest.fixture
def fetched(monkeypatch):
    """The names of files that were copied."""
    names, get_file = [], MemoryFileSystem.get_file

    def count(self, path, target, **options):
        names.append(path.rpartition("/")[2])
        return get_file(self, path, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", count)
    return names


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_copy_is_what_the_store_holds_and_only_changes_are_copied_again(store, fetched):
    folder = remote.fetch("memory://bucket/data/")
    assert contents(folder) == {"labels.jsonl": b"{}", "img/a.png": b"123", "img/b.png": b"4"}
    fetched.clear()
    assert remote.fetch("memory://bucket/data") == folder and not fetched
    store.pipe_file("/bucket/data/labels.jsonl", b"[]")  # of the same size
    store.rm_file("/bucket/data/img/b.png")
    (folder / "img" / "a.png").write_bytes(b"999")  # touched here
    assert contents(remote.fetch("memory://bucket/data")) == {"labels.jsonl": b"[]", "img/a.png": b"123"}
    assert sorted(fetched) == ["a.png", "labels.jsonl"]
    fetched.clear()
    assert remote.fetch("memory://bucket/data/img/a.png").read_bytes() == b"123" and not fetched


def test_paths_and_urls(store, tmp_path):
    copy = remote.fetch("memory://bucket/data/img/a.png")
    assert remote.url_of(copy) == "memory://bucket/data/img/a.png" and remote.url_of(tmp_path) is None
    folder = remote.copy_of("memory://bucket/data")
    assert remote.copy_within("memory://bucket/data/img/a.png", [tmp_path, folder]) == copy
    assert remote.copy_within("memory://bucket/database/a.png", [folder]) is None
    assert remote.with_urls(f"{copy}:3: no; {tmp_path}") == f"memory://bucket/data/img/a.png:3: no; {tmp_path}"
    assert remote.local(tmp_path) == tmp_path and remote.local("memory://bucket/data/img/a.png") == copy
    assert remote.copy_of("s3a://bucket/a") == remote.copy_of("s3://bucket/a/")


@pytest.mark.parametrize(
    "url",
    ["memory://bucket/../secret", "memory://bucket//a", "memory://", "memory://b/" + 300 * "x", "s3://me:key@b/a"],
)
def test_names_without_a_copy_are_refused(url):
    with pytest.raises(DataError, match=r"rename it|password") as refusal:
        remote.fetch(url)
    assert "key@" not in str(refusal.value)


def test_a_file_and_a_folder_of_one_name_are_refused(store):
    store.store["/bucket/data/img"] = store.store["/bucket/data/labels.jsonl"]
    with pytest.raises(DataError, match="data/img: a file and a folder in one"):
        remote.fetch("memory://bucket/data/")


def test_a_copy_that_is_cut_off_is_named_and_nothing_of_it_stays(store, monkeypatch):
    def half(self, path, target, **options):
        with open(target, "wb") as file:
            file.write(self.cat_file(path)[:1])

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", half)
        with pytest.raises(DataError, match=r"memory://bucket/data/img/a.png: cut off.*1 of 3 bytes.*again"):
            remote.fetch("memory://bucket/data/img/a.png")
        assert not contents(remote.copy_of("memory://bucket/data"))
        problems = remote.fetch_each([remote.copy_of(f"memory://bucket/data/img/{name}.png") for name in "ab"])
        assert [path.name for path in problems] == ["a.png"]
    assert remote.fetch("memory://bucket/data/img/a.png").read_bytes() == b"123"


class NoCredentialsError(Exception):
    """As drivers have them: of no class that fsspec knows."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoCredentialsError("Unable to locate credentials"), "no usable credentials.*AWS_ACCESS_KEY_ID"),
        (PermissionError("Forbidden"), r"reading was refused \(Forbidden\) — check the credentials and their rights"),
        (TimeoutError("timed out"), "timed out — check the connection"),
        (FileNotFoundError("The specified bucket does not exist"), "no such file or folder.*bucket exists"),
    ],
)
def test_failures_of_a_store_name_it_and_the_fix(store, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(MemoryFileSystem, "isfile", fail)
    with pytest.raises((StorageError, DataError), match=f"memory://bucket/data: .*{said}"):
        remote.fetch("memory://bucket/data")


def test_drivers_and_protocols_that_are_not_there(monkeypatch):
    def without(url, **_):
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(StorageError, match=r"odd://bucket: Protocol not known: odd"):
        remote.fetch("odd://bucket")
    monkeypatch.setattr("fsspec.core.url_to_fs", without)
    with pytest.raises(StorageError, match=r"s3://bucket/a: needs s3fs — pip install 'mllm-tailor\[remote\]'"):
        remote.fetch("s3://bucket/a")


def test_published_files_arrive_whole_or_are_named(store, fetched, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{}")
    remote.publish_all({"memory://bucket/out/a.json": tmp_path / "a.json"}, "Publishing")
    assert store.cat_file("/bucket/out/a.json") == b"{}" and remote.exists("memory://bucket/out")
    copy = remote.copy_of("memory://bucket/out/b.json")
    copy.parent.mkdir(parents=True)
    copy.write_text("[]")
    remote.publish(copy, "memory://bucket/out/b.json")
    assert remote.fetch("memory://bucket/out/b.json") == copy and not fetched  # what was published from it is known
    remote.withdraw("memory://bucket/out/b.json")
    assert not remote.exists("memory://bucket/out/b.json")
    monkeypatch.setattr(MemoryFileSystem, "put_file", lambda self, path, url, **_: self.pipe_file(url, b"{"))
    with pytest.raises(StorageError, match=r"out/a.json: only 1 bytes arrived"):
        remote.publish(tmp_path / "a.json", "memory://bucket/out/a.json")
