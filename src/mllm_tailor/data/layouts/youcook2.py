"""YouCook2: films of cooking, cut into steps with a sentence each (Zhou et al. 2018, arXiv 1703.09788).

Rows are `{"video_id", "segments": [{"segment": [from, to], "sentence"}]}`, in JSON lines, packed with gzip or not. A
step whose film lies in `videos/` is a span of that film and its caption. Without the film (the set has only links)
it is a text: the steps so far with their times are the question, the next one is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, build, kind_of
from mllm_tailor.data.keys import unread_keys
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout
from mllm_tailor.media.container import clock
from mllm_tailor.media.source import VIDEO_SUFFIXES, inside

ROW_KEYS, STEP_KEYS = ("video_id", "segments", "subset", "split"), ("segment", "sentence", "id")
SUFFIXES = (".jsonl", ".jsonl.gz")
FILMS = "videos"
REMEMBERED = 3  # steps before the one asked for
QUESTION = "A cook has done this so far:\n{steps}\nWhat is done next?"
FIRST = "What may a cook do first?"


def _files(folder: Folder) -> list[LabelFile]:
    return [file for file in folder.label_files(*SUFFIXES) if {"video_id", "segments"} <= set(file.first)]


def detect(folder: Folder) -> bool:
    """Whether there is such a file."""
    return bool(_files(folder))


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a step; the steps of a film are a group."""
    for file in _files(folder):
        yield from build(file.rows(), lambda row, folder=file.path.parent: _steps(row, folder))  # type: ignore[misc]


def _steps(row: Row, folder: Path) -> Iterator[Sample | DataIssue]:
    identifier, segments = row.values.get("video_id"), row.values.get("segments")
    if not isinstance(identifier, str) or not identifier:
        raise DataError(f"{row.source}: `video_id` should be text, found {kind_of(identifier)} — fix this row")
    if not isinstance(segments, list) or not segments:
        raise DataError(f"{row.source}: `segments` should be a list of steps — fix this row")
    yield from unread_keys(row.values, ROW_KEYS, row.source)
    for segment in segments:
        yield from unread_keys(segment, STEP_KEYS, row.source, "step")
    steps = [_step(segment, number, row.source) for number, segment in enumerate(segments, 1)]
    film = _film(folder, identifier, row.source)
    split = row.values.get("subset", row.values.get("split"))
    for place, (span, sentence) in enumerate(steps):
        yield Sample(
            id=f"{identifier}-{place + 1}",
            media=(Media("video", film, span=span),) if film else (),
            prompt="" if film else _question(steps[:place]),
            answer=sentence,
            fields={"caption": sentence},
            group=identifier,
            split=split if isinstance(split, str) else row.split,
            source=row.source,
        )


def _step(segment: Any, number: int, source: str) -> tuple[tuple[float, float], str]:
    """Its span in seconds and its sentence.

    Raises:
        DataError: naming the row and the step.
    """
    stated = segment if isinstance(segment, Mapping) else {}
    span, sentence = stated.get("segment"), stated.get("sentence")
    times = isinstance(span, list) and len(span) == 2 and all(isinstance(time, (int, float)) for time in span)
    if not isinstance(span, list) or not times or not 0 <= span[0] < span[1]:
        raise DataError(f"{source}: step {number} has no span [from, to] in seconds — fix this row")
    if not isinstance(sentence, str) or not sentence.strip():
        raise DataError(f"{source}: step {number} has no sentence — fix this row")
    return (float(span[0]), float(span[1])), " ".join(sentence.split())


def _question(before: Sequence[tuple[tuple[float, float], str]]) -> str:
    if not before:
        return FIRST
    told = [f"{clock(begin)} to {clock(end)}: {sentence}" for (begin, end), sentence in before[-REMEMBERED:]]
    return QUESTION.replace("{steps}", "\n".join(told))


def _film(folder: Path, identifier: str, source: str) -> Path | None:
    """The film's file, where it is there."""
    places = (inside(folder, f"{FILMS}/{identifier}{suffix}", source) for suffix in sorted(VIDEO_SUFFIXES))
    return next((place for place in places if place.is_file()), None)


LAYOUT = Layout(detect, read, _files)
