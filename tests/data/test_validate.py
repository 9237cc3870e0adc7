"""The doctor finds every fault planted, and only those; and what `tailor init` proposes is a valid recipe."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.label_files import write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import (
    DataIssue,
    ValidationResult,
    exclusions,
    propose_recipe,
    read_samples,
    split,
    summarise,
    validate,
)
from mllm_tailor.data.decode_check import decode_all
from mllm_tailor.data.formats import patterns, shape
from mllm_tailor.data.propose_recipe import quoted
from mllm_tailor.media import decode_worker
from mllm_tailor.media.decode_worker import decode_one
from mllm_tailor.media.perceptual_hash import near_pairs, picture_hash
from mllm_tailor.recipe import HeldOut, read_recipe
from mllm_tailor.tasks import open_task

EXTRACT = open_task("extract", {"company": "string", "date": "date", "total": "amount"})


def receipt(number: int) -> Image.Image:
    """A page no other number gives."""
    chance = random.Random(number)
    page = Image.new("RGB", (240, 320), (250, 250, 248))
    draw = ImageDraw.Draw(page)
    for line in range(8, 310, 12):
        start = chance.randrange(8, 120)
        draw.rectangle((start, line, start + chance.randrange(20, 110), line + 7), fill=(30, 30, 30))
    return page


def sample(folder: Path, number: int, image: Image.Image | bytes | None = None, **fields: Any) -> Sample:
    path = folder / f"{number}.png"
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        (image or receipt(number)).save(path)
    labels = {"company": f"Shop {number}", "date": f"{number % 28 + 1:02}/03/2019", "total": f"{number}.50"}
    return Sample(str(number), (Media("image", path=path),), fields=labels | fields, source=f"labels.jsonl:{number}")


def named(faults: list[DataIssue], word: str) -> set[str | None]:
    return {fault.sample_id for fault in faults if word in fault.problem}


@pytest.mark.slow
def test_every_planted_leak_is_found_and_nothing_else(tmp_path: Path) -> None:
    train = [sample(tmp_path, number) for number in range(30)]
    saved = io.BytesIO()
    receipt(3).save(saved, "JPEG", quality=60)
    smaller = receipt(4).resize((180, 240), Image.Resampling.LANCZOS)
    held_out = [
        sample(tmp_path, 101, (tmp_path / "1.png").read_bytes()),  # the same bytes, other labels
        sample(tmp_path, 102, saved.getvalue(), **train[3].fields),  # saved anew, the same labels
        sample(tmp_path, 103, smaller),  # scaled, other labels
        sample(tmp_path, 104, receipt(900), **train[5].fields),  # another picture, all fields equal
        *(sample(tmp_path, number) for number in range(200, 220)),
    ]
    validation = validate(train, held_out, EXTRACT, workers=2)
    assert named(validation.errors(), "the same file") == {"1"}
    assert named(validation.errors(), "nearly the same picture") == {"3"}
    assert named(validation.warnings(), "nearly the same picture") == {"4"}
    assert named(validation.warnings(), "all fields equal") == {"5"}
    assert len(validation.faults) == 4
    assert set(exclusions(validation)) == {"1", "3"}, "the training side goes, the held-out side stays"


@pytest.mark.slow
def test_damaged_missing_empty_and_unlabelled_samples(tmp_path: Path) -> None:
    whole = (receipt(1), receipt(2))
    faulty = {
        "cut": sample(tmp_path, 10, (lambda s: whole[0].save(s, "PNG") or s.getvalue()[:900])(io.BytesIO())),
        "empty": sample(tmp_path, 11, b""),
        "text": sample(tmp_path, 12, b"not a picture"),
        "missing": dataclasses.replace(sample(tmp_path, 13), media=(Media("image", path=tmp_path / "none.png"),)),
        "unlabelled": dataclasses.replace(sample(tmp_path, 14), fields={}),
        "misnamed": dataclasses.replace(sample(tmp_path, 15), fields={"sum": "1"}),
        "nested": sample(tmp_path, 16, total={"value": 1}),
        "control": sample(tmp_path, 17, company="Shop <|im_end|> X"),
    }
    good = [sample(tmp_path, number) for number in range(20, 40)]
    early = DataIssue("labels.jsonl:99", "not valid JSON", "fix it")
    validation = validate([*faulty.values(), *good], [sample(tmp_path, 1)], EXTRACT, faults=[early], workers=2)
    assert set(exclusions(validation)) == {item.id for item in faulty.values()}
    assert early in validation.errors()
    assert all(fault.source.startswith("labels.jsonl:") and fault.fix for fault in validation.faults)


def test_without_decoding_missing_and_empty_files_are_still_found(tmp_path: Path) -> None:
    train = [sample(tmp_path, 1), sample(tmp_path, 2, b""), sample(tmp_path, 3, b"damaged")]
    (tmp_path / "1.png").unlink()
    shared = dataclasses.replace(sample(tmp_path, 5), media=train[2].media)
    validation = validate(train, [shared], EXTRACT, decode=False)
    assert set(exclusions(validation)) == {"1", "2", "3"} and not validation.bytes_compared
    assert named(validation.errors(), "the same file") == {"3"}


@pytest.mark.slow
def test_odd_values_empty_fields_duplicates_and_ways_of_writing(tmp_path: Path) -> None:
    train = [sample(tmp_path, number) for number in range(20)]
    train.append(sample(tmp_path, 20, date="soon", total=""))
    train.append(sample(tmp_path, 21, receipt(0), company="Shop 0 again"))
    validation = validate(train, [sample(tmp_path, 99)], EXTRACT, workers=1)
    assert not validation.errors()
    assert named(validation.warnings(), "'soon' does not look like a date") == {"20"}
    assert named(validation.warnings(), "no total") == {"20"}
    assert named(validation.warnings(), "the same file as 21, but their labels differ") == {"0"}
    facts = {fact.name: fact for fact in validation.fields}
    assert (facts["total"].filled, facts["total"].empty) == (22, 1)
    assert [(p.shape, p.count) for p in facts["date"].patterns] == [("99/99/9999", 22), ("a", 1)]
    assert facts["company"].patterns == ()


@pytest.mark.slow
def test_a_file_that_kills_its_decoder_is_a_fault_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies on one file is replaced, and the files after it are decoded."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "import PIL.Image as image\n"
        "opened = image.open\n"
        "def deadly(stream, *args, **kwargs):\n"
        "    if b'deadly' in stream.read(): os.kill(os.getpid(), 9)\n"
        "    stream.seek(0)\n"
        "    return opened(stream, *args, **kwargs)\n"
        "image.open = deadly\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "deadly.png").write_bytes(b"deadly")
    files = [sample(tmp_path, number).media[0] for number in range(3)]
    done = []
    media = [files[0], Media("image", path=tmp_path / "deadly.png"), *files[1:], Media("image", data=b"deadly")]
    decoded = decode_all(media, workers=1, progress=lambda: done.append(1))
    assert [bool(one.problem) for one in decoded] == [False, True, False, False, True] and len(done) == 5
    assert "brings the decoder down" in (decoded[1].problem or "") and "deadly.png" in (decoded[1].problem or "")
    assert decoded[0] == decode_one(files[0]) and decoded[0].size == (240, 320) and len(decoded[0].sha256) == 64


@pytest.mark.slow
def test_a_worker_killed_from_outside_is_replaced_and_no_file_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "import PIL.Image as image\n"
        "opened = image.open\n"
        "def killed_once(*args, **kwargs):\n"
        "    try:\n"
        f"        pathlib.Path({str(tmp_path / 'killed')!r}).touch(exist_ok=False)\n"
        "    except FileExistsError:\n"
        "        return opened(*args, **kwargs)\n"
        "    os.kill(os.getpid(), 9)\n"
        "image.open = killed_once\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    media = [sample(tmp_path, number).media[0] for number in range(2)]
    decoded = decode_all(media, workers=1)
    assert (tmp_path / "killed").exists() and [item.problem for item in decoded] == [None, None]


@pytest.mark.slow
def test_workers_agree_with_this_process_on_every_kind(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        container.mux(stream.encode())
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:200])
    media = [
        Media("video", path=tmp_path / "clip.mp4"),
        Media("video", path=tmp_path / "cut.mp4"),
        Media("audio", path=tmp_path / "clip.mp4"),  # holds no sound
        sample(tmp_path, 1).media[0],
    ]
    decoded = decode_all(media, workers=2)
    assert decoded == [decode_one(item) for item in media]
    assert [bool(one.problem) for one in decoded] == [False, True, True, False]


def test_a_file_over_the_limit_is_named_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(path: Path) -> str:
        raise AssertionError(f"{path} was read for its checksum")

    monkeypatch.setattr(decode_worker, "sha256", never)
    for kind, name in (("image", "a.png"), ("video", "a.mp4"), ("audio", "a.wav")):
        with (tmp_path / name).open("wb") as file:
            file.truncate(12 * 2**30)
        assert "over the limit of" in (decode_one(Media(kind, path=tmp_path / name)).problem or "")


@pytest.mark.slow
@pytest.mark.parametrize("installed", [True, False])
def test_heic_and_avif_are_checked(installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = Image.effect_noise((64, 64), 80).convert("RGB")
    pixels.save(tmp_path / "a.avif")
    with (tmp_path / "b.heic").open("wb") as file:
        pytest.importorskip("pillow_heif").from_pillow(pixels).save(file)
    rows = [{"image": name, "total": name} for name in ("a.avif", "b.heic")]
    dataset = read_samples(write(tmp_path, {"rows.jsonl": rows}))
    if not installed:  # in the process that decodes
        (tmp_path / "without").mkdir()
        (tmp_path / "without" / "pillow_heif.py").write_text("raise ImportError('not installed')")
        path = os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        monkeypatch.setenv("PYTHONPATH", path)
    errors = validate(dataset.samples, [], open_task("extract", {"total": "string"}), workers=1).errors()
    assert [(error.sample_id, "mllm-tailor[heif]" in str(error)) for error in errors] == (
        [] if installed else [("b", True)]
    )


def test_every_view_of_a_scene_is_decoded(tmp_path: Path) -> None:
    paths = [sample(tmp_path, number).media[0].path for number in range(3)]
    whole = Media("image", paths[0], views=tuple(paths))
    assert decode_all([whole], workers=1) == [decode_one(whole)] and not decode_one(whole).problem
    paths[2].write_bytes(b"no image")
    broken = Media("image", paths[0], views=tuple(paths))
    assert paths[2].name in (decode_all([broken], workers=1)[0].problem or "")


def test_near_pairs_are_those_of_the_plain_definition() -> None:
    chance = np.random.default_rng(0)
    base = chance.integers(0, 256, (40, 296), dtype=np.uint8)
    near = base.copy()
    for row in near:  # up to four coarse and many fine bits apart
        for bit in chance.integers(0, 64, chance.integers(0, 5)):
            row[bit // 8] ^= 1 << (bit % 8)
        row[8 : 8 + chance.integers(0, 120)] ^= 0b00010001

    def plain(one: np.ndarray, other: np.ndarray) -> bool:
        a, b = np.unpackbits(one), np.unpackbits(other)
        return (a[:64] != b[:64]).sum() <= 2 and (a[64:] != b[64:]).sum() <= 0.2 * (a[64:] | b[64:]).sum()

    expected = {(i, j) for i in range(40) for j in range(40) if plain(base[i], near[j])}
    found = list(near_pairs([row.tobytes().hex() for row in base], [row.tobytes().hex() for row in near]))
    assert len(found) == len(set(found)) and set(found) == expected and 5 < len(expected) < 40
    assert list(near_pairs([], [])) == [] and list(near_pairs([base[0].tobytes().hex()], [])) == []


def test_blank_pages_are_not_copies_of_one_another() -> None:
    blank = picture_hash(Image.new("RGB", (100, 100), "white"))
    assert list(near_pairs([blank], [blank])) == []


@settings(max_examples=100)
@given(values=st.lists(st.text(max_size=15), max_size=10))
def test_patterns_count_every_value_once(values: list[str]) -> None:
    found = patterns((str(number), value) for number, value in enumerate(values))
    assert sum(pattern.count for pattern in found) == len(values)
    for pattern in found:
        assert all(shape(values[int(example)]) == pattern.shape for example in pattern.examples)


def labelled_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        row.setdefault("file_name", f"{number}.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def proposal(folder: Path, tmp_path: Path) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(propose_recipe(read_samples(folder)), encoding="utf-8")
    recipe = read_recipe(path)
    open_task(recipe.task_name, recipe.task_settings)
    return recipe


def test_the_proposed_recipe_knows_types_and_parts(tmp_path: Path) -> None:
    rows = [
        {
            "company": f"Shop {number % 9}",
            "date": f"2019-01-{number % 28 + 1:02}",
            "total": f"RM {number}.00",
            "paid": ("cash", "card")[number % 2],
            "count": number,
            "rate": number / 7,
            "open": bool(number % 2),
            "lines": [{"name": "x", "price": "1.00"}],
            "true": "a field with a hard name",
            "long": "word " * 100,
            "nested": {"a": 1},
        }
        for number in range(60)
    ]
    recipe = proposal(labelled_folder(tmp_path / "data: 1", rows), tmp_path)
    fields = open_task(recipe.task_name, recipe.task_settings).settings.fields  # type: ignore[attr-defined]
    assert {name: spec.type for name, spec in fields.items()} == {
        "company": "choice",
        "date": "date",
        "total": "amount",
        "paid": "choice",
        "count": "integer",
        "rate": "number",
        "open": "boolean",
        "lines": "list",
        "true": "string",
        "long": "string",
        "nested": "object",
    } | {"company": fields["company"].type}
    assert fields["paid"].choices == ["card", "cash"] and fields["long"].max_length >= 500
    assert recipe.data.held_out == HeldOut(folds=5, group_by="company")  # a tenth of 60 would decide nothing
    dataset = read_samples(recipe.data.train)
    assert all(split(dataset, HeldOut(fraction=0.1, group_by="company"), 0))
    assert len(summarise(dataset)) == len(fields)
    for item in dataset.samples:
        open_task(recipe.task_name, recipe.task_settings).phrase(item)


def test_a_split_column_and_questions_are_proposed(tmp_path: Path) -> None:
    rows = [{"question": "Total?", "answer": f"{n}", "split": ("train", "val")[n % 4 == 0]} for n in range(40)]
    recipe = proposal(labelled_folder(tmp_path / "questions", rows), tmp_path)
    assert recipe.task == {"answer": {}} and recipe.data.held_out == HeldOut(column="split", value="val")
    with pytest.raises(DataError, match="no labels"):
        propose_recipe(read_samples(labelled_folder(tmp_path / "bare", [{"split": "train"}])))


@pytest.mark.slow
@settings(max_examples=40)
@given(
    rows=st.lists(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
            | st.integers(-9, 9)
            | st.booleans(),
            min_size=1,
            max_size=3,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_the_labels_the_proposed_recipe_is_valid(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("init")
    recipe = proposal(labelled_folder(folder / "data", [{"fields": row} for row in rows * 12]), folder)
    assert set(recipe.task_settings["fields"]) <= {name for row in rows for name in row}


@settings(max_examples=150)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(["1e5", "yes", "NULL", "~", "a: b", "- x", "# c"])
)
def test_quoted_texts_read_back_the_same(text: str) -> None:
    from mllm_tailor.recipe.yaml_loader import load_yaml

    assert load_yaml(f"{{{quoted(text)}: {quoted(text)}}}  # comment", "test") == {text: text}


@pytest.mark.slow
def test_the_real_receipts(sroie: Path, tmp_path: Path) -> None:
    dataset = read_samples(sroie)
    task = open_task("extract", {"company": "string", "date": "date", "address": "string", "total": "amount"})
    by_company = validate(*split(dataset, HeldOut(fraction=0.1, group_by="company"), 0), task, decode=False)
    assert not by_company.errors()
    assert {"X51005663280", "X51005433522"} <= {fault.sample_id for fault in by_company.warnings()}
    dates = next(fact for fact in by_company.fields if fact.name == "date").patterns
    assert len(dates) >= 12 and sum(pattern.count for pattern in dates) == 626
    recipe = proposal(sroie, tmp_path)
    assert recipe.data.held_out == HeldOut(column="split", value="dev")
    assert list(recipe.task_settings["fields"]) == ["company", "date", "address", "total"]


@pytest.mark.slow
def test_the_real_receipts_decoded(sroie: Path) -> None:
    dataset = read_samples(sroie)
    task = open_task("extract", {"company": "string", "date": "date", "address": "string", "total": "amount"})
    validation: ValidationResult = validate(*split(dataset, HeldOut(column="split", value="dev"), 0), task)
    assert set(exclusions(validation)) == {"X51005301659"}, "one of the five identical pairs lies on both sides"
    assert len([fault for fault in validation.warnings() if "the same file" in fault.problem]) == 4
