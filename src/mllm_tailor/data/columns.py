"""One row of named columns into a sample: which column is the file, the id, the part, the question, the labels."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, MediaKind, Sample
from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import decode_data_uri, inside, media_kind

# The first group with a column present wins, so a field called `path` is a label where `file_name` names the file.
MEDIA_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("views",),  # pictures of one scene, stitched into one
    ("file_name", "file_names"),
    ("image", "images", "video", "videos", "audio", "audios"),
    ("image_path", "img", "img_path", "video_path", "audio_path"),
    ("file", "filename", "file_path", "path", "media"),
)
LABEL_COLUMNS = ("ground_truth", "gt_parse", "entities", "fields", "labels")
QUESTION_COLUMNS = ("question", "prompt", "query", "instruction")
ANSWER_COLUMNS = ("answer", "response", "caption", "transcript", "transcription", "text")
OPTION_COLUMNS = ("options", "choices")
SPLIT_COLUMNS = ("split", "subset", "part")
TECHNICAL_COLUMNS = frozenset({"group", "ocr", "width", "height", "frames", "fps", "sample_rate", "duration", "drawn"})


def media_columns(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that name files; empty when there are none."""
    for group in MEDIA_COLUMNS:
        found = tuple(name for name in group if values.get(name) not in (None, "", []))
        if found:
            return found
    return ()


def samples_of(row: Row, roots: tuple[Path, ...]) -> Iterator[Sample]:
    """The samples of one row (several when it holds several questions).

    Raises:
        DataError: naming the row.
    """
    values, source = row.values, row.source
    named = media_columns(values)
    media = tuple(item for name in named for item in read_media(values[name], _kind_hint(name), roots, source))
    if not media:
        known = ", ".join(name for group in MEDIA_COLUMNS[:2] for name in group)
        raise DataError(f"{source}: names no file (looked for {known}) — add a column with the file of this row")
    if named == ("views",):
        media = (stitched(media, source),)
    rest = {name: plain_value(value, source, name) for name, value in values.items() if name not in named}
    identifier = read_id(rest.pop("id", None), source) or default_id(media, source)
    split = _pop_text(rest, SPLIT_COLUMNS) or row.split
    options = pop_options(rest)
    for question, answer, fields, extra in _labels(rest, source):
        yield Sample(
            id=identifier,
            media=media,
            prompt=question,
            answer=answer,
            options=options,
            fields=fields,
            group=group_key(values.get("group")),
            split=split,
            source=source,
            extra=extra,
        )


def _labels(rest: dict[str, Any], source: str) -> Iterator[tuple[str, str | None, dict[str, Any], dict[str, Any]]]:
    """(question, answer, fields, extra) of each labelled item of a row."""
    extra = {name: rest.pop(name) for name in list(rest) if name in TECHNICAL_COLUMNS}
    column = next((name for name in LABEL_COLUMNS if _holds_labels(name, rest.get(name))), None)
    if column is None:
        yield *_conversation(rest), rest, extra
        return
    labels = rest.pop(column)
    if isinstance(labels, str):
        labels = _parse_label(labels, source, column)
    parses = labels.get("gt_parses") or [labels.get("gt_parse", labels)]
    for parse in parses:
        if not isinstance(parse, dict):
            raise DataError(f"{source}: `{column}` should hold an object, found {kind_of(parse)} — mend the label")
        question, answer = _conversation(parse)
        outer_question, outer_answer = _conversation(rest)
        yield question or outer_question, answer if answer is not None else outer_answer, parse, {**rest, **extra}


def _holds_labels(name: str, value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and name in ("ground_truth", "gt_parse"))


def _parse_label(text: str, source: str, column: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f"{source}: `{column}` is not valid JSON ({error}) — mend the label") from None
    if not isinstance(value, dict):
        raise DataError(f"{source}: `{column}` should hold an object, found {kind_of(value)} — mend the label")
    return value


def _conversation(values: dict[str, Any]) -> tuple[str, str | None]:
    """The question and answer among the columns. A question leaves them; texts such as a caption stay fields too."""
    question = _pop_text(values, QUESTION_COLUMNS) or ""
    if question:
        return question, _pop_text(values, ANSWER_COLUMNS)
    return "", next((str(values[name]) for name in ANSWER_COLUMNS if isinstance(values.get(name), str)), None)


def _pop_text(values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    name = next((name for name in names if isinstance(values.get(name), (str, int, float))), None)
    return None if name is None else str(values.pop(name))


def pop_options(values: dict[str, Any]) -> tuple[str, ...]:
    """The options of a multiple-choice question, taken out of the columns: a list, {letter: text}, or columns A, B, ...

    Empty where there are none; what only shares the name stays a column.
    """
    for name in OPTION_COLUMNS:
        found = values.get(name)
        texts = list(found.values()) if isinstance(found, Mapping) else found
        plain = isinstance(texts, list) and all(isinstance(text, (str, int, float)) for text in texts)
        if isinstance(texts, list) and plain and len(texts) > 1:
            del values[name]
            return tuple(map(str, texts))
    letters = list(takewhile(lambda letter: values.get(letter) not in (None, ""), ascii_uppercase))
    if len(letters) < 2 or not any(name in values for name in QUESTION_COLUMNS):
        return ()
    return tuple(str(values.pop(letter)) for letter in letters)


def _kind_hint(column: str) -> MediaKind | None:
    kinds: tuple[MediaKind, ...] = ("image", "video", "audio")
    return "image" if column.startswith("img") else next((kind for kind in kinds if column.startswith(kind)), None)


def read_id(value: Any, source: str) -> str | None:
    """The row's own id as text, None when it has none.

    Raises:
        DataError: when it is neither text nor a whole number.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(f"{source}: `id` should be text or a whole number, found {kind_of(value)} — mend the id")
    return str(value)


def default_id(media: tuple[Media, ...], source: str) -> str:
    """The file's stem, or where the row stands when its file travelled inside it."""
    return next((item.path.stem for item in media if item.path is not None), source.rpartition("/")[2])


def read_media(value: Any, hint: MediaKind | None, roots: tuple[Path, ...], source: str) -> list[Media]:
    """The files a column names: a path, a data address, `{"bytes", "path"}`, or a list of these.

    Raises:
        DataError: naming the row.
    """
    if isinstance(value, list):
        return [item for entry in value for item in read_media(entry, hint, roots, source)]
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            name = value.get("path")
            return [Media(_kind(str(name or ""), hint or "image", source), data=value["bytes"])]
        value = value.get("path") or value.get("url") or value.get("file_name")
    if not isinstance(value, str) or not value:
        raise DataError(f"{source}: a file is named by text, found {kind_of(value)} — mend the path")
    if value.startswith("data:"):
        declared = value[5:].partition("/")[0]
        kind: MediaKind = declared if declared in ("image", "video", "audio") else hint or "image"  # type: ignore[assignment]
        return [Media(kind, data=decode_data_uri(value, source))]
    path = locate(value.removeprefix("file://"), roots, source)
    return list(pages_of(path, _kind(value, hint, source)))


def stitched(media: tuple[Media, ...], source: str) -> Media:
    """Several views of one scene as one picture.

    Raises:
        DataError: naming the row, when one of them is no plain picture file.
    """
    paths = tuple(item.path for item in media if item.path and item.kind == "image" and item.page is None)
    if len(paths) != len(media):
        raise DataError(f"{source}: `views` are picture files of one page each — mend this row")
    return Media("image", paths[0], views=paths)


def locate(name: str, roots: tuple[Path, ...], source: str) -> Path:
    """`name` under the first root where it exists, else under the first root; never outside a root.

    Raises:
        DataError: for web addresses and for paths that leave the folder.
    """
    if "://" in name:
        raise DataError(f"{source}: `{name[:80]}` is a web address — fetch the file and name it by its path")
    name = name.replace("\\", "/")
    first = inside(roots[0], name, source)
    if len(roots) == 1 or first.exists():
        return first
    others = (inside(root, name, source) for root in roots[1:])
    return next((path for path in others if path.exists()), first)


def _kind(name: str, hint: MediaKind | None, source: str) -> MediaKind:
    kind = media_kind(name) or hint
    if kind is None:
        raise DataError(
            f"{source}: `{name[:80]}` is neither a picture, a clip nor a recording by its suffix — convert or rename it"
        )
    return kind


def group_key(value: object) -> str | None:
    """A group's name without case, width, punctuation and spacing, so that one shop is one group.

    >>> group_key("BOOK  TA.K Sdn Bhd") == group_key("Book Ta K SDN BHD")
    True
    """
    if value is None:
        return None
    text = unicodedata.normalize("NFKC", str(value)).casefold()
    return re.sub(r"[\W_]+", " ", text).strip() or text.strip() or None


def plain_value(value: Any, source: str, name: str) -> Any:
    """A label as JSON holds it: dates and decimals from tables become text; NaN is refused."""
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{source}: `{name}` is {value}, which is not a value — mend the label or leave it empty")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        raise DataError(f"{source}: `{name}` holds bytes — name the file column `image`, or drop this column")
    if isinstance(value, list):
        return [plain_value(item, source, name) for item in value]
    if isinstance(value, dict):
        return {key: plain_value(item, source, f"{name}.{key}") for key, item in value.items()}
    return value
