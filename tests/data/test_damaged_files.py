"""Label files of which no row can be read are named, alone and beside whole ones."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.data import DataIssue, read_samples

ROWS = [{"file_name": f"{number}.png", "text": f"word {number}"} for number in range(4)]


def _jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _csv(rows: list[dict[str, str]]) -> bytes:
    return "".join(",".join(row) + "\n" for row in ([*rows[0]], *([*row.values()] for row in rows))).encode()


def _parquet(rows: list[dict[str, str]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


FORMATS = {
    ".jsonl": _jsonl,
    ".jsonl.gz": lambda rows: gzip.compress(_jsonl(rows), mtime=0),
    ".json": lambda rows: json.dumps(rows).encode(),
    ".csv": _csv,
    ".parquet": _parquet,
}
DAMAGES = {
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "cut off": lambda content: content[:5],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in ROWS:
        Image.new("RGB", (8, 8), (9, 99, 9)).save(tmp_path / row["file_name"])
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_file_is_named_beside_a_whole_one_and_alone(suffix: str, damage: str, folder: Path) -> None:
    (folder / f"a{suffix}").write_bytes(FORMATS[suffix](ROWS[:2]))
    bad = folder / f"b{suffix}"
    bad.write_bytes(FORMATS[suffix](ROWS[2:]))
    issues: list[DataIssue] = []
    assert len(read_samples(folder, on_issue=issues.append).samples) == 4 and not issues
    bad.write_bytes(DAMAGES[damage](bad.read_bytes()))
    read_samples(folder, on_issue=issues.append)
    assert [issue.source for issue in issues if issue.severity == "error"] == [str(bad)]
    (folder / f"a{suffix}").unlink()
    with pytest.raises(DataError, match=rf"b\{suffix}: .*(empty|damaged|not valid|zero bytes|without a row)"):
        read_samples(folder)


def test_a_file_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.jsonl").write_bytes(b"")  # as it looks to whoever may not open it
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read \(permission denied\) — check its permissions"):
        read_samples(folder)


def test_a_list_without_rows_and_a_table_of_another_kind_are_not_damaged(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(_jsonl(ROWS))
    (folder / "notes.json").write_text("[]")
    issues: list[DataIssue] = []
    read_samples(folder, on_issue=issues.append)
    assert not [issue for issue in issues if issue.severity == "error"]
