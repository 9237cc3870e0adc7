"""A file of rows that still grows: what was damaged or cut off between two calls is noticed row by row."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mllm_tailor.core.summed_rows import append_row, finish_rows, intact_lines, is_growing, write_rows

ROWS = [{"id": "a", "text": "é\u2028\r"}, {"id": "b", "text": "9.00"}, {"id": "c", "text": "9.00"}]


def grown(path: Path) -> list[bytes]:
    for row in ROWS:
        append_row(path, row)
    return intact_lines(path)


@pytest.mark.slow
def test_every_flipped_byte_costs_its_row_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = b"".join(grown(tmp_path / "whole.jsonl"))
    assert whole.count(b"\n") == 3
    sums = (tmp_path / ".whole.jsonl.sums").read_bytes()
    for name, content in (("p.jsonl", whole), (".p.jsonl.sums", sums)):
        for at in range(len(content)):
            (tmp_path / "p.jsonl").write_bytes(whole)
            (tmp_path / ".p.jsonl.sums").write_bytes(sums)
            (tmp_path / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            kept = intact_lines(tmp_path / "p.jsonl")
            assert set(kept) < set(whole.splitlines(keepends=True)) and len(kept) >= 1
            assert (tmp_path / "p.jsonl").read_bytes() == b"".join(kept)  # the others are made again
    assert "p.jsonl:2: damaged or unfinished; this row is made again" in caplog.text


def test_what_a_crash_cut_off_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p.jsonl"
    lines = grown(path)
    for cut in (1, len(lines[2]) - 1, len(lines[2])):  # the sum is there already
        path.write_bytes(b"".join(lines)[:-cut])
        assert intact_lines(path) == lines[:2]
    with caplog.at_level(logging.WARNING):
        append_row(path, ROWS[2])
    assert intact_lines(path) == lines


def test_a_complete_file_has_no_sums(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = grown(path)
    assert is_growing(path)
    finish_rows(path)
    path.write_bytes(b"".join(lines) + b'{"half')
    assert not is_growing(path) and intact_lines(path) == lines and path.read_bytes() == b"".join(lines)
    append_row(path, {"id": "d"})  # growing again: the rows before count as they are
    assert intact_lines(path)[:3] == lines and len(intact_lines(path)) == 4
    write_rows(path, ROWS[:1])
    assert intact_lines(path) == lines[:1]
    assert intact_lines(tmp_path / "absent.jsonl") == []
