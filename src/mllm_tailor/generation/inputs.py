"""Files, folders and manifests a user wants read, as unlabelled samples."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import parse_line, read_lines
from mllm_tailor.core.remote import (
    copy_of,
    copy_within,
    fetch_each,
    fetch_listed,
    is_url,
    list_files,
    refuse_web,
    url_of,
)
from mllm_tailor.core.sample import Media, MediaKind, Sample
from mllm_tailor.data.columns import REFUSED_COLUMNS, earlier_turns, with_span
from mllm_tailor.data.dialogues import as_dialogue
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.data.keys import KeyReader
from mllm_tailor.data.layouts import chat, llava
from mllm_tailor.data.layouts.columns import placed
from mllm_tailor.data.options import pop_options
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import PAGED_SUFFIXES, decode_data_uri, inside, leads_inside, media_kind

logger = logging.getLogger(__name__)

READ_KEYS = ("views", "question", "options", "id", "system", "history", "split", "group")
MANIFEST_SUFFIXES = (".jsonl", ".ndjson")
# What lies beside media without being any: labels, notes, and what systems leave in folders.
NOTE_SUFFIXES = frozenset(
    {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".md", ".rst", ".xml", ".yaml", ".yml", ".toml", ".ini"}
    | {".log", ".html", ".htm", ".css", ".js", ".py", ".sh", ".ipynb", ".parquet", ".arrow", ".srt", ".vtt", ".db"}
    | {".gz", ".lock", ".sha256", ".md5"}
)
NOTE_NAMES = frozenset({"license", "licence", "readme", "notice", "makefile", "dockerfile"})
SHOWN_NOTES = 20
MEDIA_KEYS: tuple[MediaKind, ...] = ("image", "video", "audio")


def read_inputs(paths: Sequence[Path | str], *, fetch: bool = True) -> list[Sample]:
    """Samples for `tailor predict PATH...`, in the order given; folders are walked in order of name.

    Paths may be URLs of a store. Without `fetch`, their images, videos and recordings are left for `with_files`.

    A manifest is JSON lines with `image`, `video` or `audio` (one path or a list, inside the manifest's folder or
    absolute), or `views` of one scene to be stitched, and, where wanted, `question`, `options`, `id`, `system`,
    `history` and the span `start` to `end` of a video or recording; or rows with `messages` or `conversations`. Other
    keys are named in a warning. Whatever cannot be used becomes a sample with `extra["problem"]`, which predicts as an
    error row: one bad file never stops the others. Ids are file stems, made different where they collide.
    """
    taken: set[str] = set()
    samples = [_with_own_id(sample, taken) for path in paths for sample in _read_any(path, fetch=fetch)]
    for key, number in Counter(key for sample in samples for key in sample.extra.get("unread", ())).items():
        logger.warning("The key `%s` of %d rows is not shown to the model", key, number)
    return samples


def with_files(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their files of a store on this machine; one whose file cannot be read states so."""
    files = [_files(sample) for sample in samples]
    remote = [path for path in dict.fromkeys(path for paths in files for path in paths) if url_of(path) is not None]
    problems = fetch_each(remote)

    def checked(sample: Sample, paths: Sequence[Path]) -> Sample:
        problem = next((problems[path] for path in paths if path in problems), None)
        return sample if problem is None else replace(sample, media=(), extra={**sample.extra, "problem": problem})

    return list(map(checked, samples, files))


def _files(sample: Sample) -> list[Path]:
    return [path for media in sample.media for path in (media.views or (media.path,)) if path is not None]


def _read_any(path: Path | str, *, fetch: bool) -> Iterator[Sample]:
    if not is_url(path):
        samples = _read(Path(path))
        yield from with_files(list(samples)) if fetch and Path(path).suffix.lower() in MANIFEST_SUFFIXES else samples
        return
    url = str(path)
    try:
        files = list_files(url)
        if fetch or "" in files:
            copy = fetch_listed(url, files)
    except DataError as error:
        source, _, problem = str(error).partition(": ")
        yield _about(_bad(url.rstrip("/").rpartition("/")[2], source, problem), url)
        return
    if "" not in files:
        yield from _read(copy) if fetch else _of_listing(url, sorted(files))
    elif copy.suffix.lower() in MANIFEST_SUFFIXES:
        yield from with_files(list(_of_manifest(copy))) if fetch else _of_manifest(copy)
    else:
        yield _about(_of_file(copy), url)


def _of_listing(url: str, names: Sequence[str]) -> Iterator[Sample]:
    """The files of a folder of a store, of which only documents are fetched, for the number of their pages."""
    _warn(url, "hidden files", [name for name in names if _is_hidden(Path(name)) and media_kind(name)])
    files = [name for name in names if not _is_hidden(Path(name))]
    _warn(url, "label files and notes", [name for name in files if _is_note(Path(name))])
    read = [name for name in files if not _is_note(Path(name))]
    folder = copy_of(url)
    problems = fetch_each([folder / name for name in read if Path(name).suffix.lower() in PAGED_SUFFIXES])
    if not read:
        yield _bad(folder.name, url, "holds no image, video or recording — name the folder that does")
    for name in read:
        file = folder / name
        bad = Sample(id=file.stem, source=str(file), extra={"problem": problems[file]}) if file in problems else None
        yield _about(bad or _of_file(file), name)


def _warn(where: Path | str, what: str, names: Sequence[str]) -> None:
    if names:
        logger.warning("%s: %d %s have no row: %s", where, len(names), what, _shown(names))


def _read(path: Path) -> Iterator[Sample]:
    if path.is_dir():
        everything = sorted(path.rglob("*"))
        listed = [file for file in everything if not _is_hidden(file.relative_to(path))]
        for folder in (path, *filter(_is_walked, listed)):
            if not os.access(folder, os.R_OK | os.X_OK):
                problem = "a folder that cannot be listed — check its permissions"
                yield _about(_bad(folder.name, str(folder), problem), folder.relative_to(path).as_posix())
        hidden = [file for file in everything if _is_hidden(file.relative_to(path))]
        _warn(path, "hidden files", [file.name for file in hidden if media_kind(file) and file.is_file()])
        files = [file for file in listed if not _is_note(file) and not _is_walked(file)]
        notes = [file.relative_to(path).as_posix() for file in listed if _is_note(file) and file.is_file()]
        _warn(path, "label files and notes", notes)
        if not files:
            yield _bad(path.name, str(path), "holds no image, video or recording — name the folder that does")
        for file in files:
            name = file.relative_to(path).as_posix()
            if file.is_symlink() and not leads_inside(path, file):
                problem = f"a link that leads out of {path} — name what it leads to"
                yield _about(_bad(file.stem, str(file), problem), name)
            elif not file.is_dir():  # a link to a folder in here, whose files have rows of their own
                yield _about(_of_file(file), name)
    elif path.suffix.lower() in MANIFEST_SUFFIXES:
        yield from _of_manifest(path)
    else:
        yield _about(_of_file(path), str(path))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NOTES]) + (", …" if len(names) > SHOWN_NOTES else "")


def _is_walked(file: Path) -> bool:
    """A folder whose files are among those that are listed anyway; links to folders are not followed."""
    return file.is_dir() and not file.is_symlink()


def _about(sample: Sample, file: str) -> Sample:
    """The sample with the file that its prediction is reported under: relative to the folder or manifest it is from."""
    return replace(sample, extra={**sample.extra, "file": file})


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _is_note(file: Path) -> bool:
    """Labels and notes, which have no row; whatever else cannot be opened has one that states so."""
    return file.suffix.lower() in NOTE_SUFFIXES or file.name.lower() in NOTE_NAMES


def _of_file(path: Path) -> Sample:
    kind = media_kind(path)
    if not path.is_file() and url_of(path) is None:
        return _bad(path.stem, str(path), "no such file — check the path")
    if kind is None:
        problem = f"{_format(path)} is not read — convert it to an image, PDF, video or recording"
        return _bad(path.stem, str(path), problem)
    try:
        return Sample(id=path.stem, media=pages_of(path.resolve(), kind), source=str(path))
    except DataError as error:
        return Sample(id=path.stem, source=str(path), extra={"problem": str(error)})


def _format(path: Path) -> str:
    return f"the format {path.suffix.lower()}" if path.suffix else "a file without a suffix"


def _of_manifest(path: Path) -> Iterator[Sample]:
    try:
        yield from _of_rows(path)
    except OSError as error:
        yield _bad(path.stem, str(path), f"cannot be opened ({error.strerror}) — check the path")
    except DataError as error:  # of the whole file, such as a line without end
        source, _, problem = str(error).partition(": ")
        yield _bad(path.stem, source, problem)


def _of_rows(path: Path) -> Iterator[Sample]:
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            row = parse_line(line, number)
        except ValueError as error:
            yield _bad(f"{path.stem}-{number}", where, f"not valid JSON ({error}) — fix or remove this row")
            continue
        file = _file_of_row(row)
        try:
            sample = _of_row(row, path.parent, where)
        except DataError as error:
            own = row.get("id") if isinstance(row, Mapping) else None
            problem = str(error).removeprefix(f"{where}: ")
            sample = _bad(f"{path.stem}-{number}" if own is None else str(own), where, problem)
        yield _about(sample, file) if file else sample


def _file_of_row(row: Any) -> str | None:
    """The first file that a row of a manifest names, as it is written there; None for bytes inside the row."""
    values = [row.get(key) for key in (*MEDIA_KEYS, "views")] if isinstance(row, Mapping) else []
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return next((name for name in names if isinstance(name, str) and name and not name.startswith("data:")), None)


def _of_row(row: Any, folder: Path, where: str) -> Sample:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row is one JSON object, found {type(row).__name__} — correct or remove this row")
    row = as_dialogue(row)
    if chat.recognises(row) or isinstance(row.get("conversations"), list):
        return _of_messages(row, folder, where)
    named = [(key, name) for key in MEDIA_KEYS for name in _names(row.get(key), where)]
    media = tuple(item for key, name in named for item in _media(key, name, folder, where))
    if views := tuple(inside(folder, name, where) for name in _names(row.get("views"), where)):
        media = (*media, Media("image", views[0], views=views))
    if not media:
        raise DataError(f"{where}: none of {', '.join(MEDIA_KEYS)} is named — add one")
    stem = media[0].path.stem if media[0].path is not None else f"row-{where.rpartition(':')[2]}"
    reader = KeyReader(row, where)
    reader.skip(*MEDIA_KEYS, *READ_KEYS)
    (media,) = with_span([media], reader)
    reader.refuse(REFUSED_COLUMNS)
    history, system = earlier_turns(row.get("history"), row.get("system"), reader)
    question = row.get("question", "")
    if not isinstance(question, str):
        raise DataError(f"{where}: `question` should be text, found {type(question).__name__} — fix it")
    sample = Sample(
        id=str(row.get("id", stem)),
        media=media,
        prompt=question,
        options=_options(row, where),
        history=history,
        system=system,
        extra={"unread": tuple(reader.unread())},
        source=where,
    )
    return placed(sample)  # with its files where `<image>` stands, as rows of labels have them


def _of_messages(row: Mapping[str, Any], folder: Path, where: str) -> Sample:
    """The last question of a chat row, with everything before it."""
    read = chat.samples_of if chat.recognises(row) else llava.samples_of
    items = list(read(Row(where, dict(row)), (folder,)))
    samples = [item for item in items if isinstance(item, Sample)]
    if not samples:
        raise DataError(f"{where}: its messages hold no question — add one")
    unread = tuple(issue.problem for issue in items if isinstance(issue, DataIssue))
    return replace(samples[-1].unlabelled(), id=str(row.get("id", samples[-1].id)), extra={"unread": unread})


def _options(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The options of a multiple-choice question, in every form that rows of labels have."""
    value = row.get("options")
    options = pop_options({"options": value}, where, ())
    if not options and value not in (None, []):
        raise DataError(f"{where}: `options` should be a list of texts, found {value!r} — fix this row")
    return options


def _names(value: Any, where: str) -> list[str]:
    names = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{where}: media are named by paths, found {value!r} — fix this row")
    return names


def _media(key: MediaKind, name: str, folder: Path, where: str) -> tuple[Media, ...]:
    if name.startswith("data:"):
        return (Media(key, data=decode_data_uri(name, where)),)
    return pages_of(_place(folder, name, where), key)


def _place(folder: Path, name: str, where: str) -> Path:
    """A relative path stays inside the manifest's folder; an absolute one to media, or a URL, is the user's own word.

    A manifest in a store names files of its own folder only.
    """
    remote = url_of(folder) is not None
    if "://" in name:
        refuse_web(name, where)
        if remote and copy_within(name, [folder]) is None:
            raise DataError(f"{where}: `{name[:80]}` lies outside the folder of its manifest — name files inside it")
        return copy_of(name)
    whole = not remote and os.path.isabs(name) and media_kind(name) is not None and "\0" not in name  # noqa: PTH117
    return Path(os.path.realpath(name)) if whole else inside(folder, name, where)


def _bad(identifier: str, where: str, problem: str) -> Sample:
    return Sample(id=identifier, source=where, extra={"problem": f"{where}: {problem}"})


def _with_own_id(sample: Sample, taken: set[str]) -> Sample:
    """Keep the id if it is free; otherwise the file's name, then its folder and name, then a number."""
    path = sample.media[0].path if sample.media else None
    names = [sample.id, path.name, f"{path.parent.name}/{path.name}"] if path is not None else [sample.id]
    numbered = (f"{sample.id}-{number}" for number in count(2))
    own = next(name for name in chain(names, numbered) if name not in taken)
    taken.add(own)
    return replace(sample, id=own)
