"""Recordings beside files of transcripts: LJSpeech (`metadata.csv`, bars) and LibriSpeech (`*.trans.txt`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import walk
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import locate
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import split_of
from mllm_tailor.data.layouts.base import Folder, Layout, Roots
from mllm_tailor.data.text_rows import text_lines
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import AUDIO_SUFFIXES

LJSPEECH, WAVS = "metadata.csv", "wavs"
HEADERS = ("file_name", "filename", "file", "path", "audio", "audio_file", "audio_filepath", "wav", "id")
TRANSCRIPTS = ".trans.txt"
MOST_TEXTS = 2  # as printed and as spoken
DEEPEST = 6  # LibriSpeech/dev-clean/speaker/chapter, and a folder around them


def detect_ljspeech(folder: Folder) -> bool:
    """Whether `metadata.csv` lies beside `wavs` and begins with a line of values between bars."""
    try:
        with (folder.path / LJSPEECH).open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline(65_536)
            named = first.partition("|")[0].strip().lower() in HEADERS
            return "|" in first and not named and (folder.path / WAVS).is_dir()
    except OSError:
        return False


def read_ljspeech(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a line `name|text|normalised text`; the last text is learned."""
    file = folder.path / LJSPEECH
    for line in text_lines(file):
        if isinstance(line, DataIssue):
            yield line
            continue
        source = line.source
        name, *texts = line.text.split("|")
        if not texts or len(texts) > MOST_TEXTS:
            problem = "no text after a bar" if not texts else f"{len(texts)} texts, of which two are known"
            yield DataIssue(source, problem, "write `name|text` or `name|text|text as spoken`, or remove the line")
            continue
        text = next((text for text in reversed(texts) if text.strip()), "")
        extra = {"written": texts[0]} if len(texts) > 1 else {}
        yield _sample(name.strip(), text, source, folder, (folder.path / WAVS, folder.path), None, extra)


def _transcripts(folder: Folder) -> list[Path]:
    """All `*.trans.txt` files below the folder; LibriSpeech has one for each chapter of each speaker."""
    found = []
    for root, _, names in walk(folder.path):
        found += [Path(root, name) for name in names if name.endswith(TRANSCRIPTS)]
    return found


def detect_librispeech(folder: Folder) -> bool:
    """Whether a `*.trans.txt` lies in the folder or in the first folders below it."""
    paths = [folder.path]
    for _ in range(DEEPEST):
        if any(entry.name.endswith(TRANSCRIPTS) for path in paths for entry in folder.listing(path)):
            return True
        paths = [path / entry.name for path in paths[:1] for entry in folder.listing(path) if entry.is_dir()][:1]
    return False


def read_librispeech(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a line `speaker-chapter-number TEXT`; the recordings of a speaker are a group."""
    for file in _transcripts(folder):
        above = file.relative_to(folder.path).parts[:-1]
        split = next((split for part in above if (split := split_of(part))), None)
        for line in text_lines(file):
            if isinstance(line, DataIssue):
                yield line
                continue
            name, _, text = line.text.partition(" ")
            yield _sample(name, text, line.source, folder, (file.parent,), split, {"speaker": name.split("-")[0]})


def _sample(
    name: str, text: str, source: str, folder: Folder, roots: Roots, split: str | None, extra: dict[str, str]
) -> Sample | DataIssue:
    try:
        file = name if Path(name).suffix.lower() in AUDIO_SUFFIXES else folder.with_suffix(name, roots) or f"{name}.wav"
        media = pages_of(locate(file, roots, source), "audio")
    except DataError as error:
        return DataIssue.of(error, source)
    text = text.strip()
    return Sample(
        Path(name).stem,
        media,
        answer=text,
        fields={"text": text},
        group=extra.get("speaker"),
        split=split,
        source=source,
        extra=extra,
    )


LJ_SPEECH = Layout(detect_ljspeech, read_ljspeech)
LIBRI_SPEECH = Layout(detect_librispeech, read_librispeech)
