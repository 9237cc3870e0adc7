"""Uploaded files and batches: damage is named, one server owns a folder, a full disk costs no answer."""

from __future__ import annotations

import asyncio
import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mllm_tailor.core.errors import RunError
from mllm_tailor.serving import batches as batches_module
from mllm_tailor.serving.batches import Batches
from mllm_tailor.serving.errors import ApiError
from mllm_tailor.serving.file_store import FileStore


def test_damaged_files_and_notes_are_named_and_others_are_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FileStore(tmp_path, 9)
    first, second, third = (store.add(b"row\n", name, "batch")["id"] for name in ("a", "b", "c"))
    assert store.read(first) == b"row\n"
    (tmp_path / first).write_bytes(b"rows")
    with pytest.raises(ApiError, match=f"{first}: damaged"):
        store.read(first)
    note = tmp_path / f"{second}.json"
    note.write_bytes(note.read_bytes().replace(b'"b"', b'"x"'))
    with pytest.raises(ApiError, match="note is damaged"):
        store.row(second)
    assert {row["id"] for row in store.rows("file")} == {first, third} and str(note) in caplog.text


KILLED_IN_AN_UPLOAD = """
import os, pathlib, signal, sys
from mllm_tailor.core.io import atomic_file
with atomic_file(pathlib.Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_belongs_to_one_server(tmp_path: Path) -> None:
    store = FileStore(tmp_path, 9)
    subprocess.run([sys.executable, "-c", KILLED_IN_AN_UPLOAD, tmp_path / "file-1"], check=False)
    assert len(list(tmp_path.glob(".*.partial"))) == 1
    store.own()
    assert list(tmp_path.glob(".*.partial")) == []
    with pytest.raises(RunError, match="another server"):
        FileStore(tmp_path, 9).own()
    store.close()
    FileStore(tmp_path, 9).own()


def test_a_batch_waits_for_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, url = FileStore(tmp_path, 9), "/v1/chat/completions"
    rows = [{"custom_id": str(n), "method": "POST", "url": url, "body": {}} for n in range(3)]
    number = store.add("".join(json.dumps(row) + "\n" for row in rows).encode(), "in.jsonl", "batch")["id"]
    state: Any = SimpleNamespace(backend=SimpleNamespace(ready=True), settings=SimpleNamespace())
    state.settings.limits = SimpleNamespace(batch_rows=10)
    full, append = [True, False, True], batches_module.append_row

    def append_row(path: Path, row: dict[str, Any]) -> None:
        if full and full.pop():
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, row)

    async def answer_row(_: Any, request: dict[str, Any]) -> dict[str, Any]:
        return {"custom_id": request["custom_id"], "response": {"status_code": 200}}

    for name, new in (("append_row", append_row), ("answer_row", answer_row), ("PAUSE", 0.0)):
        monkeypatch.setattr(batches_module, name, new)

    async def work() -> dict[str, Any]:
        batches = Batches(state, store)
        asked: Any = SimpleNamespace(input_file_id=number, endpoint=url, completion_window="24h", metadata=None)
        batch = batches.create(asked)
        await batches.tasks[batch["id"]]
        return store.row(batch["id"])

    row = asyncio.run(work())
    assert row["status"] == "completed" and row["request_counts"]["completed"] == 3 and not full
    answers = [json.loads(line) for line in store.read(row["output_file_id"]).splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == ["0", "1", "2"]
