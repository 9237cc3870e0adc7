"""Which samples are held out: by fraction, by group, by a column, or in a second folder. Seeded and order-free."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import SPLIT_COLUMNS, group_key
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.read import Dataset, read_samples
from mllm_tailor.recipe import HeldOut

Parts = tuple[tuple[Sample, ...], tuple[Sample, ...]]


def split(
    dataset: Dataset, held_out: HeldOut, seed: int, on_issue: Callable[[DataIssue], object] | None = None
) -> Parts:
    """(training, held-out) samples, each in the data's order, groups set and whole on one side.

    Raises:
        DataError: when a column or group is unknown, or one side would be empty.
    """
    if held_out.folder is not None:
        second = read_samples(held_out.folder, on_issue=on_issue, media_root=dataset.media_root).samples
        train, held = dataset.samples, _without_clashes(second, dataset.samples, held_out.folder)
        grouped = _grouped((*train, *held), held_out.group_by)
        parts = grouped[: len(train)], grouped[len(train) :]
    elif held_out.folds is not None:
        samples = _grouped(dataset.samples, held_out.group_by)
        strata = _strata(samples, held_out.stratify_by, "stratify by")
        folds = make_folds(samples, held_out.folds, f"{seed}:fold", strata)
        if held_out.fold is None:  # the final model is trained on everything; each fold has a run of its own
            return samples, ()
        parts = _cut(samples, folds[held_out.fold - 1])
    elif held_out.column is not None:
        parts = _by_column(_grouped(dataset.samples, held_out.group_by), held_out, dataset)
    else:
        assert held_out.fraction is not None, "the recipe says one of fraction, column, folder"
        samples, salt = _grouped(dataset.samples, held_out.group_by), f"{seed}:held_out"
        if held_out.fixed:
            parts = by_name(samples, held_out.fraction, salt)
        else:
            strata = _strata(samples, held_out.stratify_by, "stratify by")
            parts = by_fraction(samples, held_out.fraction, salt, strata)
    for side, samples in zip(("train on", "hold out"), parts, strict=True):
        if not samples:
            raise DataError(f"{dataset.path}: nothing is left to {side} — change `data.held_out`")
    return parts


def split_dev(train: Sequence[Sample], fraction: float, seed: int, group_by: str | None = None) -> Parts:
    """(training, dev) samples. Groups stay whole unless they are so large that dev would double its share."""
    samples = _grouped(train, group_by)
    wanted = round(fraction * len(samples))
    if fraction == 0 or len(samples) < 2:
        return samples, ()
    rest, dev = by_fraction(samples, fraction, f"{seed}:dev")
    if not rest or len(dev) > max(2, 2 * wanted):
        single = tuple(replace(sample, group=None, media=()) for sample in samples)
        chosen = {sample.id for sample in by_fraction(single, fraction, f"{seed}:dev")[1]}
        rest, dev = _cut(samples, chosen)
    return rest, dev


def by_fraction(
    samples: Sequence[Sample], fraction: float, salt: str, strata: Mapping[str, str] | None = None
) -> Parts:
    """Hold out whole units (groups, or samples of one file) until the fraction is met as nearly as they allow.

    With `strata` (sample id to stratum) every stratum gives the same share, as nearly as its units allow.
    """
    units: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        units[split_unit(sample)].append(sample.id)
    wanted = max(1, round(fraction * len(samples)))
    ranked = sorted(units, key=lambda unit: hashlib.sha256(f"{salt}:{unit}".encode(errors="replace")).digest())
    if strata is not None:
        ranked = _spread(ranked, {unit: strata[ids[0]] for unit, ids in units.items()})
    chosen: set[str] = set()
    for unit in ranked:
        if len(chosen) + len(units[unit]) <= wanted:
            chosen.update(units[unit])
    if not chosen:  # every unit is larger than what is wanted: the smallest comes nearest
        chosen.update(units[min(ranked, key=lambda unit: len(units[unit]))])
    return _cut(samples, chosen)


def make_folds(
    samples: Sequence[Sample], count: int, salt: str, strata: Mapping[str, str] | None = None
) -> list[set[str]]:
    """The ids of each fold. Whole units; folds of nearly equal size, with `strata` of nearly equal composition.

    Raises:
        DataError: when there are fewer units than folds.
    """
    units: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        units[split_unit(sample)].append(sample.id)
    if len(units) < count:
        raise DataError(f"{count} folds need as many groups, and there are {len(units)} — take fewer folds")

    def order(unit: str) -> tuple[int, bytes]:
        return -len(units[unit]), hashlib.sha256(f"{salt}:{unit}".encode(errors="replace")).digest()

    folds: list[set[str]] = [set() for _ in range(count)]
    held: list[Counter[str]] = [Counter() for _ in range(count)]
    for unit in sorted(units, key=order):  # large units first, each to the fold that has least of its kind
        kind = strata[units[unit][0]] if strata is not None else ""
        chosen = min(range(count), key=lambda fold: (held[fold][kind], len(folds[fold])))
        folds[chosen].update(units[unit])
        held[chosen][kind] += len(units[unit])
    return folds


def _spread(ranked: Sequence[str], stratum: Mapping[str, str]) -> list[str]:
    """The units so ordered that the first ones of any number hold every stratum in proportion to its size."""
    sizes = Counter(stratum[unit] for unit in ranked)
    seen: Counter[str] = Counter()
    place: dict[str, float] = {}
    for unit in ranked:
        name = stratum[unit]
        place[unit] = (seen[name] + 0.5) / sizes[name]
        seen[name] += 1
    return sorted(ranked, key=place.__getitem__)  # stable: units at the same place keep their rank


def _strata(samples: Sequence[Sample], name: str | None, purpose: str) -> dict[str, str] | None:
    """The value of a field or column of every sample as text; None without a name."""
    if name is None:
        return None
    _check_known(samples, name, purpose)
    return {sample.id: str(value_of(sample, name)) for sample in samples}


def _check_known(samples: Sequence[Sample], name: str, purpose: str) -> None:
    known = {str(key) for sample in samples for key in (*sample.fields, *sample.extra)}
    if name not in known:
        raise DataError(f"data.held_out: no field or column `{name}` to {purpose} — {nearest(name, known)}")


def by_name(samples: Sequence[Sample], fraction: float, salt: str) -> Parts:
    """Hold out a unit where its hash lies in the lowest `fraction` of all hashes: no other unit has a say in it."""
    limit = fraction * 2**64
    hashes = {
        unit: hashlib.sha256(f"{salt}:{unit}".encode(errors="replace")).digest() for unit in map(split_unit, samples)
    }
    chosen = {sample.id for sample in samples if int.from_bytes(hashes[split_unit(sample)][:8]) < limit}
    return _cut(samples, chosen)


def _cut(samples: Sequence[Sample], chosen: set[str]) -> Parts:
    return (
        tuple(sample for sample in samples if sample.id not in chosen),
        tuple(sample for sample in samples if sample.id in chosen),
    )


def split_unit(sample: Sample) -> str:
    """What a split keeps together: a group, else the samples of one file, else the sample."""
    if sample.group is not None:
        return f"group:{sample.group}"
    if sample.media and sample.media[0].path is not None:
        return f"file:{sample.media[0].path.parent.name}/{sample.media[0].path.name}"
    return f"id:{sample.id}"


def _grouped(samples: Sequence[Sample], group_by: str | None) -> tuple[Sample, ...]:
    """The samples with `group` set from a field or column; a sample without a value is a group of its own."""
    if group_by is None:
        return tuple(samples)
    _check_known(samples, group_by, "group by")
    return tuple(replace(sample, group=group_key(value_of(sample, group_by))) for sample in samples)


def value_of(sample: Sample, name: str) -> object:
    """The value of a field or column of a sample, None when it has none."""
    if name in sample.fields:
        return sample.fields[name]
    if name in sample.extra:
        return sample.extra[name]
    return sample.split if name in SPLIT_COLUMNS else None


def _by_column(samples: Sequence[Sample], held_out: HeldOut, dataset: Dataset) -> Parts:
    assert held_out.column is not None and held_out.value is not None, "the recipe says both"
    wanted = {held_out.value} if isinstance(held_out.value, str) else set(held_out.value)
    values = {sample.id: value_of(sample, held_out.column) for sample in samples}
    found = {str(value) for value in values.values() if value is not None}
    if not found:
        known = {"split", *(str(name) for sample in samples for name in (*sample.fields, *sample.extra))}
        raise DataError(f"{dataset.path}: no column `{held_out.column}` — {nearest(held_out.column, known)}")
    for value in wanted - found:
        raise DataError(f"{dataset.path}: no row has {held_out.column} = `{value}` — {nearest(value, found)}")
    return _cut(samples, {identifier for identifier, value in values.items() if str(value) in wanted})


def _without_clashes(second: Sequence[Sample], first: Sequence[Sample], folder: str) -> tuple[Sample, ...]:
    """Ids of a second folder, prefixed with its name where the first folder has the same ones."""
    taken = {sample.id for sample in first}
    prefix = folder.rstrip("/").rpartition("/")[2]
    return tuple(replace(sample, id=f"{prefix}/{sample.id}") if sample.id in taken else sample for sample in second)
