"""Label files that would fill the memory are named, whatever container they lie in."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mllm_tailor.core import io as core_io
from mllm_tailor.core.errors import DataError
from mllm_tailor.data import DataIssue, csv_rows, read_samples
from mllm_tailor.data.arrow_rows import arrow_rows
from mllm_tailor.data.jsonl import Row


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_io, "UNPACKED_FREE", 1 << 16)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20)).save(stream, "PNG")
    return stream.getvalue()


def test_an_archive_that_unpacks_without_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("a.png", picture()), ("a.txt", b"a"), ("b.png", picture()), ("b.txt", bytes(1 << 23))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    issues: list[DataIssue] = []
    assert [sample.answer for sample in read_samples(path, on_issue=issues.append).samples] in (["a"], [None])
    assert any("unpacks to over 100 times its size" in issue.problem for issue in issues)


def test_a_table_of_repeated_pages_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    table = pa.table({"text": ["x" * 100_000 + str(number) for number in range(200)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    (issue,) = arrow_rows(path)
    assert isinstance(issue, DataIssue) and "unpacks to over 100 times its size" in issue.problem
    pq.write_table(table.slice(0, 1), path, compression="none")
    assert all(isinstance(row, Row) for row in arrow_rows(path))


def test_a_line_without_end_in_a_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "train.csv"
    path.write_text("file_name,text\na.png,ok\nb.png," + "x" * 5000 + "\n")
    rows = list(csv_rows.csv_rows(path))
    assert isinstance(rows[0], Row) and isinstance(rows[1], DataIssue) and len(rows) == 2
    assert rows[1].source == f"{path}:3" and "a line of over 1,000 characters" in rows[1].problem
    path.write_text('file_name,text\na.png,ok\nb.png,"' + "x\n" * 5000)
    assert any(isinstance(row, DataIssue) for row in csv_rows.csv_rows(path))


def test_a_huge_label_beside_an_image_is_named(tmp_path: Path) -> None:
    for name in ("images", "entities"):
        (tmp_path / name).mkdir()
    for stem in ("a", "b"):
        (tmp_path / "images" / f"{stem}.png").write_bytes(picture())
    (tmp_path / "entities" / "a.json").write_text('{"total": "1.00"}')
    with (tmp_path / "entities" / "b.json").open("wb") as stream:
        stream.truncate(12 * 2**30)
    with pytest.raises(DataError, match=r"b\.json.*over the limit of"):
        read_samples(tmp_path)
