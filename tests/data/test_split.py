"""Splits are disjoint, complete, seeded, free of row order, and keep groups whole."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import Dataset, group_key, read_samples, split, split_dev
from mllm_tailor.recipe import HeldOut


def dataset(companies: list[str]) -> Dataset:
    return Dataset(
        tuple(
            Sample(f"r{number}", (Media("image", Path(f"r{number}.jpg")),), fields={"company": company, "total": "1"})
            for number, company in enumerate(companies)
        )
    )


companies = st.lists(st.sampled_from([f"Shop {letter}" for letter in "ABCDEFGHIJ"]), min_size=12, max_size=120)


@settings(max_examples=60)
@given(names=companies, fraction=st.floats(0.05, 0.5), seed=st.integers(0, 99), grouped=st.booleans())
def test_a_split_is_complete_seeded_and_free_of_order(
    names: list[str], fraction: float, seed: int, grouped: bool
) -> None:
    if grouped and len(set(names)) < 2:
        return
    data = dataset(names)
    held_out = HeldOut(fraction=fraction, group_by="company" if grouped else None)
    train, held = split(data, held_out, seed)
    assert Counter(s.id for s in (*train, *held)) == Counter(s.id for s in data.samples)
    shuffled = list(data.samples)
    random.Random(seed).shuffle(shuffled)
    again = split(Dataset(tuple(shuffled)), held_out, seed)
    assert {s.id for s in again[1]} == {s.id for s in held}
    if grouped:
        assert not {s.group for s in train} & {s.group for s in held}
    else:
        assert len(held) == max(1, round(fraction * len(names)))


@settings(max_examples=60)
@given(names=companies, fraction=st.floats(0.01, 0.4), seed=st.integers(0, 99), grouped=st.booleans())
def test_the_dev_part_never_costs_more_than_twice_its_share(
    names: list[str], fraction: float, seed: int, grouped: bool
) -> None:
    samples = dataset(names).samples
    train, dev = split_dev(samples, fraction, seed, "company" if grouped else None)
    assert Counter(s.id for s in (*train, *dev)) == Counter(s.id for s in samples)
    assert train and 0 < len(dev) <= max(2, 2 * round(fraction * len(samples)))
    assert split_dev(samples, 0, seed) == (samples, ())


def test_another_seed_is_another_choice_and_dev_differs_from_held_out() -> None:
    data = dataset(["x"] * 200)
    first, second = (split(data, HeldOut(fraction=0.2), seed)[1] for seed in (0, 1))
    assert {s.id for s in first} != {s.id for s in second}
    assert {s.id for s in split_dev(data.samples, 0.2, 0)[1]} != {s.id for s in first}


def test_one_shop_written_two_ways_is_one_group() -> None:
    assert group_key("  Kedai  A. Sdn-Bhd") == group_key("KEDAI A SDN BHD") == group_key("ＫＥＤＡＩ A (Sdn) Bhd")
    assert group_key("A") != group_key("B") and group_key(None) is None and group_key("--") == "--"
    train, held = split(
        dataset(["Kedai A", "KEDAI  A.", "Toko B", "toko b"]), HeldOut(fraction=0.5, group_by="company"), 0
    )
    assert len(train) == len(held) == 2


def test_questions_about_one_picture_stay_together() -> None:
    media = [(Media("image", Path(f"{number // 5}.png")),) for number in range(100)]
    samples = tuple(Sample(f"q{number}", media[number], prompt="?", answer="x") for number in range(100))
    train, held = split(Dataset(samples), HeldOut(fraction=0.2), 3)
    assert len(held) == 20 and not {s.media for s in train} & {s.media for s in held}


def test_by_column_value_and_by_second_folder(tmp_path: Path) -> None:
    samples = tuple(Sample(f"r{n}", split=("train", "dev", "test")[n % 3], fields={"year": n % 2}) for n in range(12))
    data = Dataset(samples)
    assert len(split(data, HeldOut(column="split", value="dev"), 0)[1]) == 4
    assert len(split(data, HeldOut(column="split", value=["dev", "test"]), 0)[1]) == 8
    assert len(split(data, HeldOut(column="year", value="1"), 0)[1]) == 6
    assert len(split(data, HeldOut(column="part", value="dev"), 0)[1]) == 4  # the other names such a column has
    (tmp_path / "second").mkdir()
    (tmp_path / "second/metadata.jsonl").write_text(
        '{"file_name": "r1.png", "year": 3}\n{"file_name": "new.png", "year": 3}\n'
    )
    train, held = split(data, HeldOut(folder=str(tmp_path / "second")), 0)
    assert len(train) == 12 and {s.id for s in held} == {"second/r1", "new"}


@pytest.mark.parametrize(
    ("held_out", "hint"),
    [
        (HeldOut(column="splits", value="dev"), "did you mean `split`"),
        (HeldOut(column="split", value="devv"), "did you mean `dev`"),
        (HeldOut(column="split", value=["train", "dev"]), "nothing is left to train on"),
        (HeldOut(fraction=0.5, group_by="compani"), "did you mean `company`"),
    ],
)
def test_what_cannot_be_split_says_why(held_out: HeldOut, hint: str) -> None:
    samples = tuple(Sample(f"r{n}", split=("train", "dev")[n % 2], fields={"company": "A"}) for n in range(4))
    with pytest.raises(DataError, match=hint):
        split(Dataset(samples), held_out, 0)


def test_a_single_group_cannot_lie_on_both_sides() -> None:
    with pytest.raises(DataError, match="nothing is left"):
        split(dataset(["A"] * 10), HeldOut(fraction=0.1, group_by="company"), 0)


@pytest.mark.slow
def test_real_receipts_by_company(sroie: Path) -> None:
    data = read_samples(sroie)
    for seed in range(5):
        train, held = split(data, HeldOut(fraction=0.1, group_by="company"), seed)
        assert abs(len(held) - 63) <= 2 and not {s.group for s in train} & {s.group for s in held}
    assert list(map(len, split(data, HeldOut(column="split", value="dev"), 0))) == [557, 69]
