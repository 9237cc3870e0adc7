"""Lists of captions, several lines an image: Flickr8k's and Flickr30k's files, and tables of image and caption.

`image,caption` with a header, `image_name| comment_number| comment` with a header, or `image.jpg#0<tab>caption`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import locate
from mllm_tailor.data.csv_rows import encoding_of
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import split_of
from mllm_tailor.data.layouts.answers import captioned
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout
from mllm_tailor.data.text_rows import text_lines
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import media_kind

HEADERS = {"image", "imagename", "filename", "file", "img", "video", "videoid"}
TEXTS = {"caption", "comment", "sentence", "description"}
NUMBERS = {"", "commentnumber", "captionnumber", "index", "id", "sentid"}
LONGEST_LINE = 65_536  # characters
_TOKEN = re.compile(r"(?P<name>[^\t#]+\.\w{3,4})#\d+\t(?P<caption>.+)")


def _files(folder: Folder) -> list[Path]:
    inner = [folder.path / entry.name for entry in folder.listing()]
    return [file for file in inner or [folder.path] if file.suffix.lower() in (".txt", ".csv", ".tsv") and _form(file)]


def _form(file: Path) -> tuple[str, int, int] | None:
    """(delimiter, column of the image, column of the caption); "#" for lines of `image#number`; None for others."""
    try:
        with file.open(encoding=encoding_of(file), errors="replace") as lines:
            first = lines.readline(LONGEST_LINE).rstrip("\r\n")
    except OSError:
        return None
    if (match := _TOKEN.fullmatch(first)) and media_kind(match["name"]):
        return "#", 0, 1
    delimiter = max("|,\t;", key=first.count)
    names = [re.sub(r"[\W_]+", "", name).lower() for name in first.split(delimiter)]
    image = next((number for number, name in enumerate(names) if name in HEADERS), None)
    text = next((number for number, name in enumerate(names) if name in TEXTS), None)
    if image is None or text is None or set(names) - HEADERS - TEXTS - NUMBERS:
        return None
    return delimiter, image, text


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample an image, with all its captions in the order of the list."""
    for file in _files(folder):
        roots = folder.roots(file)
        captions: dict[str, tuple[str, list[str]]] = {}
        for item in _lines(file):
            if isinstance(item, DataIssue):
                yield item
                continue
            source, name, caption = item
            captions.setdefault(name, (source, []))[1].append(caption)
        for name, (source, texts) in captions.items():
            try:
                full = name if media_kind(name) else folder.with_suffix(name, roots) or name
                media = pages_of(locate(full, roots, source), media_kind(full) or "image")
                yield captioned(Sample(Path(name).stem, media, split=split_of(file.stem), source=source), texts)
            except DataError as error:
                yield DataIssue.of(error, source)


def _lines(file: Path) -> Iterator[tuple[str, str, str] | DataIssue]:
    """(source, image, caption) of every line."""
    form = _form(file)
    assert form is not None, "only files of a known form are read"
    delimiter, image, text = form
    columns = 2 if delimiter == "#" else 0
    for item in _records(file, delimiter):
        if isinstance(item, DataIssue):
            yield item
            continue
        source, row = item
        if not columns:  # the header
            columns = len(row)
            continue
        last = text == columns - 1  # only then a delimiter may stand in the caption
        if len(row) <= max(image, text) or (len(row) > columns and not last):
            problem = "no caption in this line" if len(row) <= max(image, text) else f"{len(row)} values in this line"
            yield DataIssue(source, problem, "write an image and a caption, or remove the line")
            continue
        others = [cell for number, cell in enumerate(row[:columns]) if number not in (image, text)]
        if not all(cell.strip().isdecimal() for cell in others if cell.strip()):
            problem = f"{others} beside image and caption is not read"
            yield DataIssue(source, problem, "number captions there, or take it out", None, "warning")
        caption = delimiter.join(row[text:]) if last else row[text]
        if not row[image].strip() or not caption.strip():
            yield DataIssue(source, "no image or no caption in this line", "add it, or remove the line")
            continue
        yield source, row[image].strip(), " ".join(caption.split())


def _records(file: Path, delimiter: str) -> Iterator[tuple[str, list[str]] | DataIssue]:
    """(source of its first line, values) of every record; a value in quotes may go over several lines."""
    issues: list[DataIssue] = []
    sources: list[str] = []

    def texts() -> Iterator[str]:
        for line in text_lines(file):
            if isinstance(line, DataIssue):
                issues.append(line)
            else:
                sources.append(line.source)
                yield f"{line.text}\n"

    rows: Iterator[list[str]] = map(_tokens, texts()) if delimiter == "#" else csv.reader(texts(), delimiter=delimiter)
    begin = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            yield DataIssue(sources[-1], f"not a readable row ({error})", "correct its quotes or remove it")
            begin = len(sources)
            continue
        yield sources[begin], row
        begin = len(sources)
        yield from issues
        issues.clear()
    yield from issues


def _tokens(line: str) -> list[str]:
    match = _TOKEN.fullmatch(line.rstrip("\n"))
    return [match["name"], match["caption"]] if match else [line.strip()]


def _label_files(folder: Folder) -> list[LabelFile]:
    return [LabelFile(file) for file in _files(folder)]


LAYOUT = Layout(lambda folder: bool(_files(folder)), read, _label_files)
