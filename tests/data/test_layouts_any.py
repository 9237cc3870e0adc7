"""Any rows at all: what is written is read back, strange rows become samples or faults, garbage never crashes."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest
from fixtures.label_files import write
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.core.errors import DataError
from mllm_tailor.data import LAYOUTS, DataIssue, detect, read_samples
from mllm_tailor.data.layouts.base import Folder

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
scalars = st.one_of(
    st.text(max_size=20),
    st.integers(-(2**53), 2**53),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False, allow_infinity=False),
)
field_rows = st.dictionaries(names, scalars, max_size=4)


@settings(max_examples=20)
@given(rows=st.lists(field_rows, min_size=1, max_size=5))
def test_metadata_round_trip(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trip")
    values = [{"file_name": f"{number}.png", "fields": row} for number, row in enumerate(rows)]
    write(folder, {"metadata.jsonl": values})
    samples = read_samples(folder).samples
    assert [dict(sample.fields) for sample in samples] == rows
    assert [sample.id for sample in samples] == [str(number) for number in range(len(rows))]


@settings(max_examples=20)
@given(rows=st.lists(st.lists(st.text(max_size=12), min_size=2, max_size=2), min_size=1, max_size=5))
def test_table_round_trip(rows: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trip")
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerow(["file_name", "one", "two"])
        writer.writerows([f"{number}.png", *row] for number, row in enumerate(rows))
    samples = read_samples(folder).samples
    assert [list(sample.fields.values()) for sample in samples] == rows


@settings(max_examples=20)
@given(turns=st.lists(st.text(max_size=15).map(str.strip), min_size=2, max_size=6))
def test_conversations_lose_no_answer(turns: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trip")
    roles = ("human", "gpt")
    said = [{"from": roles[index % 2], "value": turn} for index, turn in enumerate(turns)]
    write(folder, {"c.json": [{"id": "c", "conversations": said}]})
    samples = read_samples(folder).samples
    assert [sample.prompt for sample in samples] == turns[::2]
    assert [sample.answer for sample in samples if sample.answer is not None] == turns[1::2]
    for sample in samples:
        assert [turn.text for turn in sample.history] == turns[: len(sample.history)]


json_values = st.recursive(
    st.one_of(scalars, st.floats(), st.sampled_from(["a.png", "../x.png", "data:image/png;base64,xx", "<image>"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "from",
                    "value",
                    "content",
                    "type",
                    "text",
                    "image_url",
                    "url",
                    "bytes",
                    "path",
                    "gt_parse",
                    "gt_parses",
                    "annotation",
                    "root",
                    "question",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
KEYS = [
    "file_name",
    "image",
    "images",
    "messages",
    "conversations",
    "id",
    "split",
    "ground_truth",
    "entities",
    "question",
    "answer",
    "video",
    "system",
    "ocr",
]


@pytest.mark.slow
@settings(max_examples=25)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=5) | json_values, min_size=1, max_size=4)
)
@pytest.mark.parametrize("layout", ["chat", "llava", "metadata"])
def test_strange_rows_become_samples_or_faults(
    layout: str, rows: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("strange")
    first = {"chat": {"messages": []}, "llava": {"conversations": []}, "metadata": {"file_name": "a.png", "x": 1}}[
        layout
    ]
    write(folder, {"rows.jsonl": [first, *rows]})
    items = list(LAYOUTS.load(layout).read(Folder(folder)))
    assert items
    for item in items:
        if isinstance(item, DataIssue):
            assert "rows.jsonl:" in item.source and item.problem and item.fix
        else:
            assert all(media.path is None or media.path.is_relative_to(folder.resolve()) for media in item.media)
            json.dumps([item.id, item.prompt, item.answer, dict(item.fields)], allow_nan=False).encode()


@settings(max_examples=30)
@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "metadata.jsonl", "state.json"]),
    head=st.sampled_from(
        [
            b"",
            b"file_name,total\n",
            b'{"file_name": "a.png"}\n',
            b'[{"messages": []}',
            b'{"a": {"annotation": "x"}}',
            b"PAR1",
        ]
    ),
)
def test_garbage_never_crashes_a_reader(
    content: bytes, name: str, head: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    (folder / name).write_bytes(head + content)
    (folder / "x.arrow").write_bytes(content)
    faults: list[DataIssue] = []
    try:
        layout, _ = detect(Folder(folder))
    except DataError:
        return
    for item in LAYOUTS.load(layout).read(Folder(folder)):
        faults += [item] if isinstance(item, DataIssue) else []
    assert all(fault.problem and fault.fix for fault in faults)
