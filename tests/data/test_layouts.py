"""Every layout: written here, read back equal; bad rows become faults that name them."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.label_files import write
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.data import LAYOUTS, DataIssue, read_samples
from mllm_tailor.tasks import open_task

FIELDS = [{"company": "Kedai “A”", "total": "9.00"}, {"company": "Toko B", "total": "RM 1.50"}]


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "white").save(stream, "PNG")
    return stream.getvalue()


def faults_of(path: Path, layout: str | None = None) -> list[DataIssue]:
    faults: list[DataIssue] = []
    try:
        read_samples(path, layout, on_issue=faults.append)
    except DataError:
        assert faults, "refused without saying which row"
    return faults


def test_sroie_json_text_and_metadata_beside(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "img/a.jpg": picture(),
            "img/b.png": picture(),
            "key/a.json": FIELDS[0],
            "key/b.txt": "company: Toko B\ntotal: RM 1.50\n",
            "metadata.jsonl": [{"file_name": "img/a.jpg", "split": "dev", "group": "Shop 1", "ocr": ["9.00"]}],
        },
    )
    dataset = read_samples(tmp_path)
    assert dataset.layout == "sroie"
    assert [dict(sample.fields) for sample in dataset.samples] == FIELDS
    assert [sample.split for sample in dataset.samples] == ["dev", None]
    assert dataset.samples[0].extra["ocr"] == ["9.00"] and dataset.samples[0].group == "shop 1"
    assert dataset.samples[0].source.endswith("key/a.json:1")


def test_sroie_names_what_lacks_its_other_half(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"images/a.jpg": picture(), "images/b.jpg": picture(), "entities/b.json": FIELDS[0], "entities/c.json": {}},
    )
    problems = [str(fault) for fault in faults_of(tmp_path)]
    assert any("a.jpg" in problem and "no label file" in problem for problem in problems)
    assert any("c.json" in problem and "no picture" in problem for problem in problems)


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("[1, 2]", "found a list"),
        ("{", "not valid JSON"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "1e999"),
        ("", "empty"),
        ("9.00", "found a number"),
        ('{"a": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "nested deeper"),
    ],
)
def test_bad_labels_are_named_and_the_rest_is_read(tmp_path: Path, label: str, problem: str) -> None:
    write(tmp_path, {"images/a.jpg": picture(), "images/b.jpg": picture(), "entities/a.json": FIELDS[0]})
    (tmp_path / "entities/b.json").write_text(label)
    faults: list[DataIssue] = []
    assert [sample.id for sample in read_samples(tmp_path, on_issue=faults.append).samples] == ["a"]
    assert len(faults) == 1 and problem in faults[0].problem and faults[0].source.endswith("b.json:1") and faults[0].fix
    with pytest.raises(DataError, match=r"b\.json:1"):
        read_samples(tmp_path)


def test_metadata_donut_and_folders_named_after_parts(tmp_path: Path) -> None:
    truth = json.dumps({"gt_parse": {"menu": [{"nm": "Nasi", "price": "5"}], "total": "5"}})
    questions = json.dumps({"gt_parses": [{"question": "Total?", "answer": "5"}, {"question": "Shop?", "answer": "B"}]})
    write(
        tmp_path,
        {
            "train/metadata.jsonl": [{"file_name": "a.png", "ground_truth": truth}],
            "validation/metadata.jsonl": [{"file_name": "b.png", "ground_truth": questions}],
        },
    )
    first, *others = read_samples(tmp_path).samples
    assert first.fields == {"menu": [{"nm": "Nasi", "price": "5"}], "total": "5"} and first.split == "train"
    assert {(sample.prompt, sample.answer, sample.split) for sample in others} == {
        ("Total?", "5", "validation"),
        ("Shop?", "B", "validation"),
    }
    assert {sample.id for sample in others} == {"b-1", "b-2"}


def test_metadata_media_kinds_questions_and_ids(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train.jsonl": [
                {"id": 7, "audio": "x.wav", "text": "zero", "speaker": "jo", "duration": 0.5},
                {"video": "y.mp4", "label": "swipe"},
                {"image": "z.png", "question": "Normal?", "answer": "No", "organ": "CHEST"},
            ]
        },
    )
    sound, clip, asked = read_samples(tmp_path).samples
    assert (sound.id, sound.media[0].kind, sound.answer, sound.fields["speaker"]) == ("7", "audio", "zero", "jo")
    assert sound.extra == {"duration": 0.5} and sound.split == "train"
    assert (clip.id, clip.media[0].kind, dict(clip.fields)) == ("y", "video", {"label": "swipe"})
    assert (asked.prompt, asked.answer, dict(asked.fields)) == ("Normal?", "No", {"organ": "CHEST"})


def test_chat_rows_with_paths_data_addresses_and_several_answers(tmp_path: Path) -> None:
    address = "data:image/png;base64," + base64.b64encode(picture()).decode()
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Total?"},
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                    ],
                },
                {"role": "assistant", "content": "9.00"},
                {"role": "user", "content": "And the shop?"},
                {"role": "assistant", "content": [{"type": "text", "text": "Kedai"}]},
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": address}, {"type": "text", "text": "?"}],
                }
            ]
        },
        {
            "images": ["b.png"],
            "messages": [{"role": "user", "content": "<image>Date?"}, {"role": "assistant", "content": "x"}],
        },
    ]
    dataset = read_samples(write(tmp_path, {"chat.jsonl": rows}))
    first, second, inline, marked = dataset.samples
    assert dataset.layout == "chat"
    assert (first.id, first.prompt, first.answer, first.history, first.system) == (
        "a-1",
        "Total?",
        "9.00",
        (),
        "Be brief.",
    )
    assert (second.prompt, second.answer) == ("And the shop?", "Kedai")
    assert [turn.text for turn in second.history] == ["Total?", "9.00"]
    assert first.group == second.group == "a" and first.media == second.media
    assert inline.media[0].data == picture() and inline.answer is None
    assert (marked.prompt, marked.id, len(marked.media)) == ("Date?", "b", 1)


def test_llava_rows_in_json_with_an_image_folder(tmp_path: Path) -> None:
    rows = [
        {
            "id": "000",
            "image": "a.png",
            "organ": "CHEST",
            "conversations": [{"from": "human", "value": "<image>\nTotal?"}, {"from": "gpt", "value": "9"}],
        },
        {"id": "001", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {
            "image": ["a.png"],
            "conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "?"}],
        },
        {"image": "a.png", "conversations": [{"from": "gpt", "value": "first"}]},
        {"image": "a.png", "conversations": []},
    ]
    write(tmp_path, {"llava.json": rows, "images/a.png": picture()})
    faults: list[DataIssue] = []
    dataset = read_samples(tmp_path, on_issue=faults.append)
    assert dataset.layout == "llava"
    assert [(sample.prompt, sample.answer, len(sample.media)) for sample in dataset.samples] == [
        ("Total?", "9", 1),
        ("Hi", "Hello", 0),
    ]
    assert dataset.samples[0].media[0].path == (tmp_path / "images/a.png").resolve()
    assert dataset.samples[0].extra["organ"] == "CHEST", "a column to hold out by"
    assert [fault.source.rpartition(":")[2] for fault in faults] == ["1", "3", "4", "5"]
    assert "the key `organ` is not shown" in faults[0].problem and faults[0].severity == "warning"
    assert "2 <image> markers but 1 image files" in faults[1].problem


def test_internvl_meta_reads_each_row_once_and_says_so(tmp_path: Path) -> None:
    conversation = [{"from": "human", "value": "<image>\nTotal?"}, {"from": "gpt", "value": "9"}]
    write(
        tmp_path,
        {
            "meta.json": {
                "receipts": {"root": "pictures", "annotation": "rows/r.jsonl", "repeat_time": 3, "length": 1},
                "outside": {"root": "../..", "annotation": "rows/r.jsonl"},
                "missing": {"root": ".", "annotation": "rows/none.jsonl"},
            },
            "rows/r.jsonl": [{"id": 0, "image": "a.png", "conversations": conversation}],
        },
    )
    faults: list[DataIssue] = []
    dataset = read_samples(tmp_path, on_issue=faults.append)
    assert dataset.layout == "internvl" and len(dataset.samples) == 1
    assert dataset.samples[0].media[0].path == (tmp_path / "pictures/a.png").resolve()
    assert any("`repeat_time` 3" in note for note in dataset.notes)
    assert {fault.source.rpartition(":")[2] for fault in faults if fault.severity == "error"} == {"outside", "missing"}


def test_internvl_files_are_taken_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of row InternVL's documentation shows, named from the working directory as its scripts do."""

    def said(*texts: str) -> list[dict[str, str]]:
        return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]

    box = "<ref>the cup</ref><box>[[100, 200, 300, 400]]</box>"
    rows = [
        {"id": 0, "image": "a.png", "width": 60, "height": 40, "conversations": said("<image>\nWhat?", "A cup.")},
        {"id": 1, "image": "a.png", "conversations": said("<image>\nWhat?", "A cup.", "Where?", box)},
        {
            "id": 2,
            "image": ["a.png", "b.png"],
            "width_list": [60, 60],
            "height_list": [40, 40],
            "conversations": said("Image-1: <image>\nImage-2: <image>\nWhich is darker?", "The second."),
        },
        {"id": 3, "video": "c.mp4", "conversations": said("<video>\nWhat is done?", "Tea is made.")},
        {"id": 4, "conversations": said("Hello", "Good day.")},
        {"id": 5, "conversations": [{"from": "system", "value": "Be short."}, *said("Hello", "Hi.")]},
    ]
    cups = {"root": "playground/data/cups/", "annotation": "playground/cups.jsonl", "data_augment": False}
    cups |= {"max_dynamic_patch": 6, "repeat_time": 1, "length": 6}
    media = {f"playground/data/cups/{name}": picture() for name in ("a.png", "b.png", "c.mp4")}
    write(tmp_path, {"shell/data/meta.json": {"cups": cups}, "playground/cups.jsonl": rows, **media})
    monkeypatch.chdir(tmp_path)
    found = read_samples("shell/data/meta.json").samples
    assert [(sample.id, len(sample.media), sample.modality) for sample in found] == [
        *[("0", 1, "image"), ("1-1", 1, "image"), ("1-2", 1, "image"), ("2", 2, "image"), ("3", 1, "video")],
        *[("4", 0, "text"), ("5", 0, "text")],
    ]
    assert found[2].answer == box and [turn.text for turn in found[2].history] == ["What?", "A cup."]
    assert (
        found[3].prompt == "Image-1: Image-2: Which is darker?"
        and found[3].positions == ((0, 9), (0, 18))
        and found[6].system == "Be short."
    )
    assert open_task("ground").labels(found[2]) == {"box": [100, 200, 300, 400]}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_with_any_delimiter_and_bad_rows(tmp_path: Path, delimiter: str) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerows(
        [["file_name", "company", "total", "split"], ["a.png", f"A{delimiter} B", "9", "test"], ["b.png", "C"]]
    )
    writer.writerow(["c.png", "two\nlines", "1", ""])
    (tmp_path / ("t.tsv" if delimiter == "\t" else "t.csv")).write_text("\ufeff" + stream.getvalue(), encoding="utf-8")
    faults: list[DataIssue] = []
    dataset = read_samples(tmp_path, on_issue=faults.append)
    assert dataset.layout == "csv"
    assert [dict(sample.fields) for sample in dataset.samples] == [
        {"company": f"A{delimiter} B", "total": "9"},
        {"company": "two\nlines", "total": "1"},
    ]
    assert dataset.samples[0].split == "test"
    assert [fault.source.rpartition(":")[2] for fault in faults] == ["3"] and "2 values for 4 columns" in faults[
        0
    ].problem


def test_parquet_with_pictures_inside_and_class_names(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [
        {"image": {"bytes": picture(), "path": "a.png"}, "label": 1},
        {"image": {"bytes": None, "path": "b.png"}, "label": 0},
    ]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "data/train-00000-of-00001.parquet")
    dataset = read_samples(tmp_path)
    assert dataset.layout == "parquet"
    assert [sample.fields["label"] for sample in dataset.samples] == ["dog", "cat"]
    assert dataset.samples[0].media[0].data == picture() and dataset.samples[1].media[0].path is not None
    assert {sample.split for sample in dataset.samples} == {"train"}


def test_a_cut_off_parquet_or_arrow_file_is_a_fault(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"image": "a.png", "total": str(number)} for number in range(1000)])
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "state.json").write_text("{}")
    assert len(read_samples(tmp_path, "hugging_face").samples) == 1000
    whole = (tmp_path / "data.arrow").read_bytes()
    (tmp_path / "data.arrow").write_bytes(whole[: len(whole) // 2])
    assert any("damaged or cut off" in fault.problem for fault in faults_of(tmp_path))


@pytest.mark.slow
def test_a_dataset_saved_by_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": picture(), "path": None}] * 2, "question": ["a?", "b?"], "answer": ["1", "2"]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "saved")
    dataset = read_samples(tmp_path / "saved")
    assert dataset.layout == "hugging_face"
    assert Counter(sample.split for sample in dataset.samples) == {"train": 2, "test": 2}
    assert {(sample.prompt, sample.answer, sample.media[0].data) for sample in dataset.samples} == {
        ("a?", "1", picture()),
        ("b?", "2", picture()),
    }


@pytest.mark.parametrize(
    "name",
    [
        "../out.png",
        "/etc/passwd.png",
        "x/../../out.png",
        "link/out.png",
        "https://host/a.png",
        "a\0.png",
        "file:///etc/a.png",
        "a" * 5000 + ".png",
    ],
)
def test_paths_never_leave_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    (tmp_path / "out.png").write_bytes(picture())
    write(folder, {"metadata.jsonl": [{"file_name": name, "total": "1"}, {"file_name": "in.png", "total": "1"}]})
    (folder / "link").symlink_to(tmp_path)
    faults: list[DataIssue] = []
    samples = read_samples(folder, on_issue=faults.append).samples
    errors = [fault for fault in faults if fault.severity == "error"]
    assert len(errors) == 1 and errors[0].source.endswith("metadata.jsonl:1")
    assert [sample.id for sample in samples] == ["in"]


def test_a_linked_media_folder_and_odd_file_names(tmp_path: Path) -> None:
    write(tmp_path, {"outside/a.png": picture(), "data/rows.jsonl": [{"image": "a.png", "total": "1"}]})
    (tmp_path / "data/images").symlink_to(tmp_path / "outside")
    (sample,) = read_samples(tmp_path / "data").samples
    assert sample.media[0].path == (tmp_path / "data/a.png").resolve(), "missing, rather than found outside"
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    write(tmp_path, {"set/images/a.png": picture(), "set/entities/a.json": FIELDS[0]})
    (tmp_path / "set/images" / os.fsdecode(b"\xff.png")).write_bytes(picture())
    (fault,) = faults_of(tmp_path / "set")
    assert "not UTF-8" in fault.problem and str(fault).encode()


def test_a_broken_first_row_does_not_hide_the_layout(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": \n{"image": "a.png", "total": "1"}\n')
    faults: list[DataIssue] = []
    assert len(read_samples(tmp_path, on_issue=faults.append).samples) == 1
    assert [fault.source.rpartition(":")[2] for fault in faults] == ["1"]


def test_an_unknown_layout_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    write(tmp_path, {"a.pdf": "x", "b.pdf": "x", "notes.txt": "hello"})
    with pytest.raises(DataError) as error:
        read_samples(tmp_path)
    assert "2 .pdf" in str(error.value) and sum(f"  {name}: " in str(error.value) for name in LAYOUTS) == 3
    with pytest.raises(DataError, match=r"rows\.jsonl has shop, total, none of which names a file"):
        read_samples(write(tmp_path, {"rows.jsonl": [{"shop": "a", "total": "9"}]}))
    with pytest.raises(DataError, match=r"t\.csv has shop, total"):
        read_samples(write(tmp_path / "table", {"t.csv": "shop;total\na;9\n"}))
    with pytest.raises(DataError, match="no such folder"):
        read_samples(tmp_path / "none")
    with pytest.raises(DataError, match="not laid out as `csv`"):
        read_samples(tmp_path, "csv")


def test_ids_are_unique_and_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "question": f"q{number}", "answer": "x"} for number in range(5)]
    forward = read_samples(write(tmp_path / "one", {"rows.jsonl": rows})).samples
    backward = read_samples(write(tmp_path / "two", {"rows.jsonl": rows[::-1]})).samples
    assert {sample.id: sample.prompt for sample in forward} == {sample.id: sample.prompt for sample in backward}
    assert len({sample.id for sample in forward}) == 5


@pytest.mark.slow
def test_the_real_receipts(sroie: Path) -> None:
    dataset = read_samples(sroie)
    assert dataset.layout == "sroie" and len(dataset.samples) == 626
    assert Counter(sample.split for sample in dataset.samples) == {"train": 557, "dev": 69}
    assert all(set(sample.fields) <= {"company", "date", "address", "total"} for sample in dataset.samples)
    assert all(sample.extra["ocr"] for sample in dataset.samples)


@pytest.mark.parametrize("linked", ["image", "label", "folder"])
def test_a_link_that_leads_out_of_the_data_is_named_and_not_followed(tmp_path: Path, linked: str) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "images").mkdir(parents=True)
    (elsewhere / "images").mkdir(parents=True)
    for folder in (data, elsewhere):
        for number in range(2):
            Image.new("RGB", (20, 20)).save(folder / "images" / f"{number}.png")
    rows = [{"file_name": f"images/{number}.png", "total": f"{number}.00"} for number in range(2)]
    labels = "".join(json.dumps(row) + "\n" for row in rows)
    (data / "metadata.jsonl").write_text(labels)
    (elsewhere / "metadata.jsonl").write_text(labels)
    inner = {"image": "images/1.png", "label": "test.jsonl", "folder": "images"}[linked]
    if linked == "image":
        (data / inner).unlink()
    elif linked == "folder":
        shutil.rmtree(data / inner)
    (data / inner).symlink_to(elsewhere / (inner if linked != "label" else "metadata.jsonl"))
    issues: list[DataIssue] = []
    if linked == "folder":
        with pytest.raises(DataError, match="leads out of"):
            read_samples(data)
        return
    found = read_samples(data, on_issue=issues.append).samples
    assert len(found) == (1 if linked == "image" else 2)
    assert issues and all("leads out of" in issue.problem and issue.severity == "error" for issue in issues)


def test_an_unknown_folder_names_the_links_that_were_not_followed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (20, 20)).save(data / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "q", "answer": "a"}\n')
    (data / "rows.jsonl").symlink_to(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"links that lead out of the folder and are not followed \(rows.jsonl\)"):
        read_samples(data)


def test_a_link_seen_through_a_loop_is_named_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(2):
        Image.new("RGB", (20, 20)).save(data / f"{number}.png")
        (data / f"{number}.json").write_text('{"total": "1"}')
    (data / "loop").symlink_to(data)
    (data / "gone.png").symlink_to(tmp_path / "nowhere.png")
    issues: list[DataIssue] = []
    assert len(read_samples(data, on_issue=issues.append).samples) == 2
    assert sum("leads out of" in issue.problem for issue in issues) == 1


def test_links_within_the_data_and_a_linked_data_folder_are_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (20, 20)).save(data / "a.png")
    (data / "b.png").symlink_to("a.png")
    rows = [{"file_name": name, "total": "1.00"} for name in ("a.png", "b.png")]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "link").symlink_to(data)
    assert len(read_samples(tmp_path / "link").samples) == 2
