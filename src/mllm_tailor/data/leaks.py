"""The same thing twice: in both parts of the data (a leak, which makes every score a lie), or in one of them."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mllm_tailor.core.io import sha256
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.media.decode_worker import Decoded
from mllm_tailor.media.perceptual_hash import near_pairs

HELD_OUT_KEEPS = "hold out by group, or exclude it: the held-out one is kept"
RARE = 0.5  # labels distinguish samples when at least this share of them is distinct


@dataclass(frozen=True)
class Labelled:
    """A sample with what is compared about it: its labels and what its files hold."""

    sample: Sample
    labels: Mapping[str, Any]
    contents: tuple[str, ...]  # checksum of each file, or its path where files were not read
    looks: tuple[str, ...]  # picture hash of each file that has one

    @property
    def said(self) -> str:
        """Question and labels, as one text to compare by."""
        return json.dumps([self.sample.prompt, self.labels], sort_keys=True, default=str)


def labelled(sample: Sample, labels: Mapping[str, Any], decoded: Mapping[Media, Decoded]) -> Labelled:
    """Gather what is known of a sample."""
    facts = [decoded.get(media, Decoded()) for media in sample.media]
    contents = tuple(
        fact.sha256 or media.describe() for media, fact in zip(sample.media, facts, strict=True) if not fact.problem
    )
    return Labelled(sample, labels, contents, tuple(fact.looks for fact in facts if fact.looks))


def find_leaks(train: Sequence[Labelled], held_out: Sequence[Labelled]) -> Iterator[DataIssue]:
    """Faults of training samples that held-out samples repeat, each training sample named once.

    The same bytes, or nearly the same picture with the same labels, is an error; nearly the same picture with other
    labels, or merely the same labels, is a warning to look at.
    """
    caught: set[str] = set()
    for ours, theirs, how in _repeats(train, held_out):
        if ours.sample.id in caught:
            continue
        caught.add(ours.sample.id)
        certain = how == "the same file" or (how == "nearly the same picture" and ours.said == theirs.said)
        yield DataIssue(
            ours.sample.source,
            f"{ours.sample.id}: {how} as held-out {theirs.sample.id} ({theirs.sample.source})",
            HELD_OUT_KEEPS if certain else "look at both; if they are one document, hold out by group or remove one",
            ours.sample.id,
            "error" if certain else "warning",
        )


def _repeats(train: Sequence[Labelled], held_out: Sequence[Labelled]) -> Iterator[tuple[Labelled, Labelled, str]]:
    """(training sample, held-out sample, what they share), the surest kind first."""
    by_content = {content: item for item in held_out for content in item.contents}
    for ours in train:
        for content in ours.contents:
            if content in by_content:
                yield ours, by_content[content], "the same file"
                break
    left = [(looks, item) for item in held_out for looks in item.looks]
    right = [(looks, item) for item in train for looks in item.looks]
    near = near_pairs([looks for looks, _ in left], [looks for looks, _ in right])
    pairs = [(right[j][1], left[i][1]) for i, j in near]
    for ours, theirs in sorted(
        pairs, key=lambda pair: pair[0].said != pair[1].said
    ):  # equal labels first: those are errors
        yield ours, theirs, "nearly the same picture"
    if _tell_apart([*train, *held_out]):
        by_labels = {item.said: item for item in held_out}
        for ours in train:
            if sum(value not in ("", None) for value in ours.labels.values()) > 1 and ours.said in by_labels:
                yield ours, by_labels[ours.said], "all fields equal"


def find_shared(train: Sequence[Sample], held_out: Sequence[Sample], where: str) -> Iterator[DataIssue]:
    """Faults of samples of another data set that repeat a file (or, without files, a question) held out in this one.

    Only equal bytes count, and only files of equal size are read. `where` says whose held-out part it is.
    """
    sizes = {_size(media) for sample in held_out for media in sample.media}
    known = {content: sample for sample in held_out for content in _contents(sample, sizes)}
    for ours in train:
        theirs = next((known[content] for content in _contents(ours, sizes) if content in known), None)
        if theirs is not None:
            yield DataIssue(
                ours.source,
                f"{ours.id}: the same {'file' if ours.media else 'question'} as {theirs.id}, held out {where}",
                "hold out the same files everywhere, or exclude it: the held-out one is kept",
                ours.id,
            )


def _contents(sample: Sample, sizes: set[int]) -> list[tuple[object, ...]]:
    """What a sample holds, in a form that compares; files of other sizes than `sizes` are left unread."""
    if not sample.media:
        return [("text", sample.prompt)]
    return [(_checksum(media), media.page, media.span) for media in sample.media if _size(media) in sizes]


def _size(media: Media) -> int:
    """Bytes; -1 for a file that is missing, which other checks report."""
    if media.path is None:
        return len(media.data or b"")
    return media.path.stat().st_size if media.path.is_file() else -1


def _checksum(media: Media) -> str:
    if media.path is None:
        return hashlib.sha256(media.data or b"").hexdigest()
    return _file_checksum(media.path) if media.path.is_file() else str(media.path)


@lru_cache(maxsize=100_000)
def _file_checksum(path: Path) -> str:
    """Kept while the program runs, since several sets may show the same files."""
    return sha256(path)


def _tell_apart(items: Sequence[Labelled]) -> bool:
    """Whether labels are rich enough that two equal ones suggest one document; yes and no are not."""
    return len({item.said for item in items}) >= RARE * len(items)


def find_duplicates(part: Sequence[Labelled]) -> Iterator[DataIssue]:
    """Warnings for samples of one part that ask the same about the same files."""
    groups: dict[tuple[Any, ...], list[Labelled]] = defaultdict(list)
    for item in part:
        if item.contents:
            groups[(item.contents, item.sample.prompt, item.sample.history)].append(item)
    for group in groups.values():
        if len(group) < 2:
            continue
        first, *others = group
        agree = all(other.said == first.said for other in others)
        names = ", ".join(item.sample.id for item in others[:5]) + (" …" if len(others) > 5 else "")
        yield DataIssue(
            first.sample.source,
            f"{first.sample.id}: the same file as {names}" + ("" if agree else ", but their labels differ"),
            "keep one of them" if agree else "correct the labels, or keep one of them",
            first.sample.id,
            "warning",
        )
