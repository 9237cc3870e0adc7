"""Streamed data: the same samples as read at once, in memory that does not grow with their number."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.images import picture

from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.lazy_sequence import LazySequence
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import open_stream, read_samples, write_stream
from mllm_tailor.data.stream import holds_media
from mllm_tailor.training.sampler import BatchSchedule, StreamWindow, stream_order

WINDOW = StreamWindow(shard=10, buffer=40)


def write_parquet(path: Path, count: int) -> Path:
    """Documents with their pictures inside, twenty rows a group."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": picture(60, 40, number).data, "path": f"{number}.png"} for number in range(3)]
    columns = {
        "image": [images[number % 3] for number in range(count)],
        "question": [f"What is number {number}? {'word ' * 200}" for number in range(count)],
        "answer": [f"answer {number}" for number in range(count)],
    }
    parquet.write_table(pa.table(columns), path, row_group_size=20)
    return path


def said(sample: Sample) -> tuple[Any, ...]:
    media = [item.data if item.data is not None else item.path and item.path.read_bytes() for item in sample.media]
    return sample.id, sample.prompt, sample.answer, sample.group, [item.kind for item in sample.media], media


def test_the_same_samples_as_read_at_once(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", 7)
    stream = write_stream(path, tmp_path / "stream")
    assert [said(sample) for sample in stream] == [said(sample) for sample in read_samples(path).samples]
    assert [said(sample) for sample in open_stream(tmp_path / "stream")[2:5]] == [
        said(stream[row]) for row in (2, 3, 4)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "webdataset"])
def test_other_layouts(kind: str, tmp_path: Path) -> None:
    if kind == "jsonl":
        path = tmp_path / "rows.jsonl"
        rows = [{"query": f"How many? {number}", "response": str(number)} for number in range(5)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path = write_tar(tmp_path / "shard-0.tar", 5)
    stream = write_stream(path, tmp_path / "stream")
    assert [said(sample) for sample in stream] == [said(sample) for sample in read_samples(path).samples]


def write_tar(path: Path, count: int) -> Path:
    import io
    import tarfile

    with tarfile.open(path, "w") as archive:
        for number in range(count):
            data = picture(60, 40, number % 3).data or b""
            for suffix, content in (("png", data), ("txt", f"text {number}".encode())):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    """Ten times the rows, written and read in the order of an epoch."""
    peaks = {}
    for count in (300, 3000):
        path = write_parquet(tmp_path / f"{count}.parquet", count)
        tracemalloc.start()
        stream = write_stream(path, tmp_path / f"stream-{count}")
        characters = sum(len(stream[int(index)].prompt) for index in stream_order(0, 0, count, WINDOW))
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert characters > 1000 * count
    assert peaks[3000] - peaks[300] < 100 * 2700, "bytes a row: 16 of its id and start, 8 of the order"


def test_an_epoch_holds_every_sample_once_and_stays_near() -> None:
    orders = [stream_order(seed, epoch, 95, WINDOW).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(95)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert stream_order(0, 1, 95, WINDOW).tolist() == orders[1]
    for start in range(0, 95, WINDOW.buffer):  # a buffer reads from its own shards, cut ones included
        shards = {index // WINDOW.shard for index in orders[0][start : start + WINDOW.buffer]}
        assert len(shards) <= WINDOW.buffer // WINDOW.shard + 2
    schedule = BatchSchedule(95, 8, 2, seed=0, window=WINDOW)
    assert [index for step in range(12) for index in schedule.samples(step)] == orders[0]


def test_a_damaged_stream_is_refused(tmp_path: Path) -> None:
    write_stream(write_parquet(tmp_path / "rows.parquet", 3), tmp_path / "stream")
    rows = tmp_path / "stream" / "samples.jsonl"
    rows.write_bytes(rows.read_bytes()[:-5])
    with pytest.raises(DataError, match="cut off — remove the folder"):
        open_stream(tmp_path / "stream")


def test_shared_ids_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(2 * (json.dumps({"id": "a", "query": "How many?", "response": "1"}) + "\n"))
    with pytest.raises(DataError, match="the same id"):
        write_stream(path, tmp_path / "stream")


@pytest.mark.slow
def test_training_resumes_exactly(tiny_model_folder: Path, tmp_path: Path) -> None:
    from fixtures.small_job import make_samples, prepare, resumes_exactly

    from mllm_tailor.training import ObjectiveInputs

    samples = make_samples(tmp_path / "pictures", 10)
    stream = LazySequence(10, samples.__getitem__, "ten pictures").map(as_conversation, "as they are")
    whole = resumes_exactly(
        lambda: prepare(tiny_model_folder, {"name": "lora", "rank": 4}), stream, tmp_path, ObjectiveInputs()
    )
    assert np.isfinite(whole.losses).all()


def test_media_inside_rows_become_files(tmp_path: Path) -> None:
    """What `data.stream` does in a run; the same samples otherwise."""
    path = write_parquet(tmp_path / "rows.parquet", 5)
    held = read_samples(path).samples
    on_disk = read_samples(path, media_folder=tmp_path / "media").samples
    assert [said(sample) for sample in on_disk] == [said(sample) for sample in held]
    assert all(media.data is None and media.path is not None for sample in on_disk for media in sample.media)
    assert len([file for file in (tmp_path / "media").rglob("*") if file.is_file()]) == 3
    assert not holds_media(path)
