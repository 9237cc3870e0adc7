"""WebDataset: .tar files whose members of one name are a sample: `0001.jpg`, `0001.txt`, `0001.cls`, `0001.json`."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mllm_tailor.core.io import MAX_RATIO, unpacked_limit
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.data.asked import question_list
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import split_of
from mllm_tailor.data.jsonl import Row, build
from mllm_tailor.data.layouts import answers, chat, llava
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout, Roots, adjusted
from mllm_tailor.data.layouts.columns import read_columns
from mllm_tailor.media.source import media_kind

SUFFIXES = (".tar", ".tar.gz", ".tgz")
TEXT_SUFFIXES = {"txt": "text", "text": "text", "caption": "caption", "transcript": "text", "cls": "label"}
STATED = ".json"  # the key under which a row holds what its .json states
LOOKED_AT = 20  # members, to recognise a file
LARGEST_MEMBER = 256 * 2**20  # bytes


def _files(folder: Folder) -> list[LabelFile]:
    if folder.path.is_file():
        paths = [folder.path]
    else:
        inner = [folder.path / entry.name for entry in folder.listing() if split_of(entry.name) and entry.is_dir()]
        paths = [path / entry.name for path in (folder.path, *inner) for entry in folder.listing(path)]
    named = [path for path in paths if path.name.lower().endswith(SUFFIXES) and path.is_file()]
    return [LabelFile(path, split_of(path.name) or split_of(path.parent.name)) for path in named if _holds_media(path)]


def _holds_media(path: Path) -> bool:
    try:
        with tarfile.open(path, "r|*") as archive:
            return any(media_kind(member.name) for member in islice(archive, LOOKED_AT))
    except (tarfile.TarError, OSError, EOFError):
        return False


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample for each name, its files read from the archive."""
    for file in _files(folder):
        yield from build(_rows(file.path, file.split), lambda row: _samples(row, folder))


def _samples(row: Row, folder: Folder) -> Iterable[Sample | DataIssue]:
    """What a sample's .json states is kept beside a text or class of its own, else it is the labels."""
    values = dict(row.values)
    stated = values.pop(STATED, {})
    if (read_talk := _talk_reader(stated)) is not None:  # its files are the members, whatever it calls them
        said = {name: value for name, value in stated.items() if name not in chat.BESIDE}
        return read_talk(Row(row.source, said | values, row.split), (folder.outer,))
    labelled = any(name in values for name in TEXT_SUFFIXES.values())
    whole = Row(row.source, values if labelled else stated | values, row.split)
    read = answers.samples_of if question_list(whole.values) else read_columns
    samples = read(whole, folder, (folder.outer,))
    beside = stated if labelled else {}
    return adjusted(samples, lambda sample: replace(sample, extra={**sample.extra, **beside}))


def _talk_reader(stated: Mapping[str, Any]) -> Callable[[Row, Roots], Iterable[Sample | DataIssue]] | None:
    """How a .json is read that holds a conversation; None for one that holds none."""
    if isinstance(stated.get("messages"), list) or chat.has_texts(stated):
        return chat.samples_of
    return llava.samples_of if isinstance(stated.get("conversations"), list) else None


def _rows(path: Path, split: str | None) -> Iterator[Row | DataIssue]:
    values: dict[str, Any] = {}
    left = unpacked_limit(path)
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                left -= member.size
                if left < 0:
                    yield DataIssue(str(path), f"unpacks to over {MAX_RATIO} times its size", "unpack it yourself")
                    return
                if not member.isreg() or Path(member.name).name.startswith("."):
                    continue
                key, suffix = _parts(member.name)
                if values and values["id"] != key:
                    yield Row(f"{path}:{values['id']}", values, split)
                    values = {}
                values.setdefault("id", key)
                source = f"{path}:{member.name}"
                stream = archive.extractfile(member) if member.size <= LARGEST_MEMBER else None
                if stream is None:
                    yield DataIssue(
                        source, f"{member.size:,} bytes, over the limit of {LARGEST_MEMBER:,}", "save it smaller"
                    )
                    continue
                issue = _add(stream.read(), member.name, suffix, values)
                if issue:
                    yield DataIssue(source, issue, "correct or remove this file")
    except (tarfile.TarError, OSError, EOFError):
        yield DataIssue(str(path), "damaged or cut off", "copy it again from its source")
    if values:
        yield Row(f"{path}:{values['id']}", values, split)


def _parts(name: str) -> tuple[str, str]:
    """The sample's name and what follows the first point of the file's name."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}".lstrip("/"), suffix.lower()


def _add(data: bytes, name: str, suffix: str, values: dict[str, Any]) -> str | None:
    """Adds a member to the row; says what is wrong with it, if anything is."""
    kind = media_kind(name)
    if kind:
        files = values.setdefault(f"{kind}s", [])
        if not isinstance(files, list):
            return f"a file of the suffix .{kind}s takes the place of the media"
        files.append({"bytes": data, "path": Path(name).name})
        return None
    last = suffix.rpartition(".")[2]
    try:
        text = data.decode("utf-8")
        if last == "json":
            stated = parse_json(text)
            values |= {STATED: stated} if isinstance(stated, dict) else {"label": stated}
        else:
            name_of_text = TEXT_SUFFIXES.get(last, last or "text")
            if name_of_text in values and values[name_of_text] != text.strip():
                return f"a second `{name_of_text}` of this sample, which is not read"
            values[name_of_text] = text.strip()
    except UnicodeDecodeError:
        return f"neither media nor UTF-8 text ({len(data)} bytes)"
    except (ValueError, json.JSONDecodeError) as error:
        return f"not valid JSON ({error})"
    return None


LAYOUT = Layout(lambda folder: bool(_files(folder)), read, _files)
