"""Rows of named columns, one of which names the file: JSON lines and lists, tables, Parquet and saved data sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.asked import with_usual_names
from mllm_tailor.data.box_columns import with_box
from mllm_tailor.data.columns import MEDIA_COLUMNS, addressed, media_columns, samples_of
from mllm_tailor.data.conversation import Slot, parts_of, unnumbered
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.data.layouts.base import ARROW_NOTES, Folder, LabelFile, Layout, adjusted, folder_layout
from mllm_tailor.media.source import media_kind

FILE_COLUMNS = frozenset(name for group in MEDIA_COLUMNS for name in group)
NO_LABELS = "sample_submission"  # Kaggle's file of invented labels, which shows the form of a submission
METADATA_STEM = "metadata"  # the file that Hugging Face's image folders name so is meant where there are others
# Further names of the file column, in lower case and without separators, by the kind of file.
IMAGE_NAMES = ("image", "img", "picture", "photo")
NAME_ENDINGS = ("", "name", "file", "filename", "filepath", "path", "id", "base64", "bytes", "b64")
ALIASES = {
    **{name + ending: "image" for name in IMAGE_NAMES for ending in NAME_ENDINGS},
    **{name + ending: "video" for name in ("video", "clip") for ending in NAME_ENDINGS},
    **{name + ending: "audio" for name in ("audio", "wav", "recording", "sound") for ending in NAME_ENDINGS},
    **dict.fromkeys(("filename", "filenames", "file", "filepath", "path", "document", "pdf", "idcode"), "file_name"),
}
# Columns of which a row has several, one for each file: `image_1`, `image_2`; `image_left`, `image_right`.
_NUMBERED = re.compile(
    rf"(?:{'|'.join((*IMAGE_NAMES, 'page', 'video', 'audio'))})[\W_]*"
    r"(?:\d{1,2}|left|right|before|after|first|second|third|front|back|top|bottom|a|b|c)(?:[\W_]*(?:path|file|name))?"
)
_ID = re.compile(r"(?i:(?:.*[\W_])?(?:u?id|key))|.*[a-z](?:Id|ID|Key)")
LONGEST_STEM = 128  # characters
WEB_ENDINGS = ("url", "uri", "link")  # of columns that are looked at last: media are never fetched


def file_columns(values: Mapping[str, Any]) -> dict[str, str]:
    """The columns that name files, each with the canonical column it stands for; empty where there are none.

    A column named as such wins over one whose value only looks like the name of a file.
    """
    known = media_columns(values)
    numbered = [name for name, value in values.items() if _NUMBERED.fullmatch(str(name).lower()) and _is_file(value)]
    if known or numbered:
        several = known[0] if known else "images"
        return {name: name for name in known} | dict.fromkeys(numbered, several)
    plain = {
        name: re.sub(r"[\W_]+", "", str(name)).lower() for name, value in values.items() if _may_name_a_file(value)
    }
    by_value = sorted(plain, key=lambda name: media_kind(str(values[name])) is None)  # a number is seldom a name
    for endings in (("",), WEB_ENDINGS):
        for name, word in ((name, plain[name]) for name in by_value):
            alias = next((ALIASES[stem] for end in endings if (stem := word.removesuffix(end)) in ALIASES), None)
            if alias:
                return {name: alias}
    for name, value in values.items():
        if isinstance(value, str) and "\n" not in value and "://" not in value and media_kind(value):
            return {name: "file_name"}
    return {}


def stem_column(values: Mapping[str, Any], folder: Folder, roots: tuple[Path, ...]) -> dict[str, str]:
    """The column of ids whose value is the name of a media file without its suffix; empty where there is none."""
    for name, value in values.items():
        plain = isinstance(value, (str, int)) and not isinstance(value, bool) and 0 < len(str(value)) <= LONGEST_STEM
        if plain and _ID.fullmatch(str(name)) and folder.with_suffix(str(value), roots):
            return {name: "file_name"}
    return {}


def _is_file(value: Any) -> bool:
    """Whether a value of a further file column names or holds a file; a column may be empty in some rows."""
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or isinstance(value.get("path"), str)
    return isinstance(value, str) and (media_kind(value) is not None or value.startswith("data:"))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _may_name_a_file(value: Any) -> bool:
    return (isinstance(value, (str, int)) and not isinstance(value, bool) and value != "") or isinstance(value, dict)


def canonical(values: Mapping[str, Any], folder: Folder, roots: tuple[Path, ...]) -> dict[str, Any]:
    """The values with files under known columns, base64 text as a data address, and missing suffixes added."""
    values = with_box(with_usual_names(values))
    columns = file_columns(values) or stem_column(values, folder, roots)
    files: dict[str, list[Any]] = {}
    for name, column in columns.items():
        files.setdefault(column, []).append(_file_value(values[name], folder, roots))
    named = {column: found[0] if len(found) == 1 else list(_flat(found)) for column, found in files.items()}
    return {name: value for name, value in values.items() if name not in columns} | named


def _file_value(value: Any, folder: Folder, roots: tuple[Path, ...]) -> Any:
    if isinstance(value, list):
        return [_file_value(item, folder, roots) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or value.startswith("data:"):
        return value
    value = addressed(value)
    return value if value.startswith("data:") or media_kind(value) else folder.with_suffix(value, roots) or value


def read_columns(row: Row, folder: Folder, roots: tuple[Path, ...]) -> Iterable[Sample | DataIssue]:
    """The samples of a row of named columns.

    Raises:
        DataError: naming the row.
    """
    return adjusted(samples_of(Row(row.source, canonical(row.values, folder, roots), row.split), roots), placed)


def placed(sample: Sample) -> Sample:
    """The sample with its files where `<image>` and its like stand in the question, if there is one for each file."""
    (question,) = unnumbered([sample.prompt], [media.kind for media in sample.media])
    pieces = parts_of(question)
    kinds = [piece.kind for piece in pieces if isinstance(piece, Slot)]
    if not kinds or kinds != [media.kind for media in sample.media]:
        return sample
    text, characters = "", []
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        else:
            characters.append(len(text))
    left = len(text) - len(text.lstrip())
    places = [max(0, at - left) for at in characters]
    usual = not sample.history and not any(places)
    positions = () if usual else tuple((len(sample.history), at) for at in places)
    return replace(sample, prompt=text.lstrip(), positions=positions)


def _names_a_file(file: LabelFile, folder: Folder) -> bool:
    first = file.first
    if FILE_COLUMNS & set(first) or file_columns(first):
        return True
    if first == file.head:  # one object, such as the label of one document
        return False
    return bool(first) and bool(stem_column(first, folder, folder.roots(file.path)))


def _layout(*suffixes: str) -> Layout:
    def files(folder: Folder) -> list[LabelFile]:
        label_files = [file for file in folder.label_files(*suffixes) if not file.path.name.startswith(NO_LABELS)]
        named = [
            file for file in label_files if file.path.name.partition(".")[0].lower() == METADATA_STEM and file.first
        ]
        return named or [file for file in label_files if _names_a_file(file, folder) or _is_unreadable_arrow(file)]

    return folder_layout(files, read_columns, tuple(ARROW_NOTES) if ".arrow" in suffixes else ())


def _is_unreadable_arrow(file: LabelFile) -> bool:
    return file.suffix == ".arrow" and not file.first


METADATA = _layout(".jsonl", ".ndjson", ".jsonl.gz")
JSON = _layout(".json")
CSV = _layout(".csv", ".tsv")
PARQUET = _layout(".parquet")
HUGGING_FACE = _layout(".arrow")
