"""One row of named columns into a sample: which column is the file, the id, the part, the question, the labels."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.remote import copy_within, refuse_web
from mllm_tailor.core.sample import Media, MediaKind, Sample, Turn
from mllm_tailor.core.strict_json import as_written, parse_json
from mllm_tailor.data.asked import ANSWER_COLUMNS, ASKED_ANSWER_COLUMNS, QUESTION_COLUMNS
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.keys import NOTHING, TECHNICAL_KEYS, KeyReader, seconds_of
from mllm_tailor.data.options import listed, pop_options
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
SPLIT_COLUMNS = ("split", "subset", "part")
SPAN_COLUMNS = (
    ("video_start", "video_end"),
    ("audio_start", "audio_end"),
    ("start", "end"),
    ("start_time", "end_time"),
    ("begin", "end"),
    ("start_sec", "end_sec"),
    ("begin_time", "end_time"),
    ("clip_start", "clip_end"),
)
OFFSET, DURATION = "offset", "duration"  # NeMo's way to name a span of a recording
# The first characters of base64 text of JPEG, PNG, GIF, WebP, TIFF and PDF files.
BASE64_STARTS = {
    "/9j/": "image/jpeg",
    "iVBOR": "image/png",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "SUkq": "image/tiff",
    "TU0A": "image/tiff",
    "JVBERi": "application/pdf",
}
SHORTEST_BASE64 = 64  # characters; a shorter text is a name
FILE_KEYS = frozenset({"path", "url", "file_name", "bytes", "detail", "width", "height", "type", "media_type"})
TRAINED_COLUMNS = ("loss", "train")  # false: not learned and not scored
WEIGHT_COLUMN = "weight"  # the same, in rows with a question; in other rows it may be a label
# Columns that make something else of a row than a question and its answer.
REFUSED_COLUMNS: Mapping[str, str] = {
    "tools": "tool calls are not supported: leave the row out, or write them into the texts",
    "functions": "tool calls are not supported: leave the row out, or write them into the texts",
    "reasoning_content": "write the reasoning into the answer, as <think>…</think>, or take it out",
    "tool_calls": "tool calls are not supported: leave the row out, or write them into the texts",
}


def media_columns(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that name files; empty when there are none."""
    for group in MEDIA_COLUMNS:
        found = tuple(name for name in group if values.get(name) not in (None, "", []))
        if found:
            return found
    return ()


def samples_of(row: Row, roots: tuple[Path, ...]) -> Iterator[Sample | DataIssue]:
    """The samples of one row (several when it holds several questions).

    Raises:
        DataError: naming the row.
    """
    values, source = row.values, row.source
    reader = KeyReader(values, source)
    for name, fix in REFUSED_COLUMNS.items():
        if isinstance(values.get(name), (str, list)) and values[name] not in NOTHING:
            raise reader.error(f"the key `{name}` is not read, but changes what is meant", fix)
    asks = any(isinstance(values.get(name), str) for name in QUESTION_COLUMNS)
    if any(values.get(name) is False for name in TRAINED_COLUMNS) or (asks and _not_trained(values)):
        problem = "is marked as not to be trained on: neither learned nor scored"
        yield DataIssue(source, problem, "leave it out, or take the mark away", None, "warning")
        return
    named = media_columns(values)
    media = tuple(item for name in named for item in read_media(values[name], _kind_hint(name), roots, source))
    if not media and not (asks and _states_no_file(values)):
        known = ", ".join(name for group in MEDIA_COLUMNS[:2] for name in group)
        raise DataError(f"{source}: names no file (looked for {known}) — add a column with the file of this row")
    if named == ("views",):
        media = (stitched(media, source),)
    (media,) = with_span([media], reader)
    rest = {name: plain_value(value, source, name) for name, value in values.items() if name not in named}
    if any(item.span is not None for item in media):
        rest = {name: value for name, value in rest.items() if name not in reader.read or name == DURATION}
    identifier = read_id(rest.pop("id", None), source) or default_id(media, source)
    split = _pop_text(rest, SPLIT_COLUMNS) or row.split
    options = pop_options(rest, source, QUESTION_COLUMNS)
    history, system = _earlier(rest, reader)
    for question, answer, fields, extra in _labels(rest, source):
        yield Sample(
            id=identifier,
            media=media,
            prompt=question,
            answer=answer,
            options=options,
            fields=fields,
            history=history,
            system=system,
            group=group_key(values.get("group")),
            split=split,
            source=source,
            extra=extra,
        )


def _states_no_file(values: Mapping[str, Any]) -> bool:
    """Whether a row has a column of files that is null: a question about no file, as half of ScienceQA's are."""
    return any(name in values and values[name] is None for group in MEDIA_COLUMNS for name in group)


def _not_trained(values: Mapping[str, Any]) -> bool:
    """Whether a row with a question gives its answer no weight, by a number or as text of a table."""
    stated = (values.get(name) for name in (*TRAINED_COLUMNS, WEIGHT_COLUMN))
    return any(str(value).strip().lower() in ("0", "0.0", "false") for value in stated if value is not None)


def _labels(rest: dict[str, Any], source: str) -> Iterator[tuple[str, str | None, dict[str, Any], dict[str, Any]]]:
    """(question, answer, fields, extra) of each labelled item of a row."""
    extra = {name: rest.pop(name) for name in list(rest) if name in TECHNICAL_KEYS}
    column = next((name for name in LABEL_COLUMNS if _holds_labels(name, rest.get(name))), None)
    if column is None:
        yield *_conversation(rest), rest, extra
        return
    labels = rest.pop(column)
    if isinstance(labels, str):
        labels = _parse_label(labels, source, column)
    wrapped = next((name for name in ("gt_parses", "gt_parse") if labels.get(name)), None)
    parses = [labels] if wrapped is None else labels[wrapped]
    beside = {} if wrapped is None else {name: value for name, value in labels.items() if name != wrapped}
    outer_question, outer_answer = _conversation(rest)
    for parse in parses if isinstance(parses, list) else [parses]:
        if not isinstance(parse, dict):
            raise DataError(f"{source}: `{column}` should hold an object, found {kind_of(parse)} — fix the label")
        parse = dict(parse)
        question, answer = _conversation(parse)
        if question and outer_question and question != outer_question:
            raise DataError(f"{source}: a question beside `{column}` and another in it — keep one")
        answer = outer_answer if answer is None else answer
        yield question or outer_question, answer, parse, {**beside, **rest, **extra}


def _earlier(rest: dict[str, Any], reader: KeyReader) -> tuple[tuple[Turn, ...], str | None]:
    """The earlier turns and the system text of a question; in rows without a question these names are labels."""
    if not any(isinstance(rest.get(name), str) for name in QUESTION_COLUMNS):
        return (), None
    return earlier_turns(rest.pop("history", None), rest.pop("system", None), reader)


def earlier_turns(history: Any, system: Any, reader: KeyReader) -> tuple[tuple[Turn, ...], str | None]:
    """Earlier turns from a list of [question, answer] or of messages, and a system text; both may be missing.

    Raises:
        DataError: naming the row.
    """
    if system is not None and not isinstance(system, str):
        raise reader.error(f"`system` should be text, found {kind_of(system)}", "correct this row")
    pairs = listed(history) if isinstance(history, str) and history else history or []
    pairs = _paired(pairs) if isinstance(pairs, list) else pairs
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        raise reader.error("`history` is no list of pairs [question, answer]", "correct this row")
    turns = [turn for question, answer in pairs for turn in (Turn("user", question), Turn("assistant", answer))]
    return tuple(turns), system or None


def _paired(turns: list[Any]) -> list[Any]:
    """Messages of user and assistant in turn as pairs; anything else as it is."""
    plain = all(isinstance(turn, Mapping) and set(turn) == {"role", "content"} for turn in turns)
    if not turns or not plain or [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        return turns
    return [[question["content"], answer["content"]] for question, answer in zip(turns[::2], turns[1::2], strict=True)]


def with_span(files: Sequence[tuple[Media, ...]], reader: KeyReader) -> list[tuple[Media, ...]]:
    """The files with the span that the row names for its one video or recording; images have none.

    Raises:
        DataError: naming the row, for a broken span or one that could be of several files.
    """
    timed = [media for file in files for media in file if media.kind != "image"]
    spans: list[tuple[float, float]] = []
    for begin, end in _stated_spans(reader) if timed else ():
        if span := seconds_of(reader, begin, end):
            spans.append(span)
    if timed and (offset := _number(reader.get(OFFSET))) is not None:
        length = _number(reader.get(DURATION))
        if length is None or length <= 0 or offset < 0:
            raise reader.error(f"`offset` without a `duration` ({length!r})", "give both, in seconds")
        spans.append((float(offset), float(offset + length)))
    if not spans:
        return list(files)
    if len(timed) > 1 or len(set(spans)) > 1:
        raise reader.error(
            f"{len(set(spans))} spans for {len(timed)} videos and recordings", "name one file and one span a row"
        )
    return [
        tuple(replace(media, span=spans[0]) if media.kind != "image" else media for media in file) for file in files
    ]


def _stated_spans(reader: KeyReader) -> list[tuple[str, str]]:
    """The pairs of columns that name a span; where two pairs share an end, the one whose begin is there."""
    stated = [pair for pair in SPAN_COLUMNS if reader.values.get(pair[0]) not in (None, "")]
    ends = {end for _, end in stated}
    return [*stated, *(pair for pair in SPAN_COLUMNS if pair not in stated and pair[1] not in ends)]


def _number(value: Any) -> float | None:
    """A number, also as text of a table; None for anything else."""
    try:
        return None if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except ValueError:
        return None


def _holds_labels(name: str, value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and name in ("ground_truth", "gt_parse"))


def _parse_label(text: str, source: str, column: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f"{source}: `{column}` is not valid JSON ({error}) — fix the label") from None
    if not isinstance(value, dict):
        raise DataError(f"{source}: `{column}` should hold an object, found {kind_of(value)} — fix the label")
    return value


def _conversation(values: dict[str, Any]) -> tuple[str, str | None]:
    """The question and answer among the columns. A question leaves them; texts such as a caption stay fields too."""
    question = _pop_text(values, QUESTION_COLUMNS) or ""
    if question:
        answer = _pop_text(values, ANSWER_COLUMNS)
        return question, _pop_text(values, ASKED_ANSWER_COLUMNS) if answer is None else answer
    return "", next((str(values[name]) for name in ANSWER_COLUMNS if isinstance(values.get(name), str)), None)


def _pop_text(values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    name = next((name for name in names if isinstance(values.get(name), (str, int, float))), None)
    return None if name is None else as_written(values.pop(name))


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
        raise DataError(f"{source}: `id` should be text or a whole number, found {kind_of(value)} — fix the id")
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
        unknown = sorted(set(map(str, value)) - FILE_KEYS)
        if unknown:
            raise DataError(f"{source}: the key `{unknown[0]}` of a file is not read — take it out of this row")
        if isinstance(value.get("bytes"), (str, int, float, list)):
            raise DataError(f"{source}: `bytes` of a file holds {kind_of(value['bytes'])} — store the file's bytes")
        if isinstance(value.get("bytes"), bytes):
            name = value.get("path")
            return [Media(_kind(str(name or ""), hint or "image", source), data=value["bytes"])]
        value = value.get("path") or value.get("url") or value.get("file_name")
    if isinstance(value, bytes) and value:
        return [Media(hint or "image", data=value)]
    if not isinstance(value, str) or not value:
        raise DataError(f"{source}: a file is named by text, found {kind_of(value)} — fix the path")
    value = addressed(value)
    if value.startswith("data:"):
        declared = value[5:].partition("/")[0]
        kind: MediaKind = declared if declared in ("image", "video", "audio") else hint or "image"
        return [Media(kind, data=decode_data_uri(value, source))]
    kind = _kind(value, hint, source)
    if hint == "video" and kind == "image":
        raise DataError(
            f"{source}: `{value[:80]}` is an image where a video is named — make a video file of the frames, or name "
            "them as `images`"
        )
    return list(pages_of(locate(value.removeprefix("file://"), roots, source), kind))


def addressed(value: str) -> str:
    """Bare base64 text of a file as a data address; other texts as they are."""
    if len(value) < SHORTEST_BASE64:
        return value
    kind = next((kind for start, kind in BASE64_STARTS.items() if value.startswith(start)), None)
    return value if kind is None else f"data:{kind};base64,{''.join(value.split())}"


def stitched(media: tuple[Media, ...], source: str) -> Media:
    """Several views of one scene as one picture.

    Raises:
        DataError: naming the row, when one of them is no plain picture file.
    """
    paths = tuple(item.path for item in media if item.path and item.kind == "image" and item.page is None)
    if len(paths) != len(media):
        raise DataError(f"{source}: `views` are picture files of one page each — fix this row")
    return Media("image", paths[0], views=paths)


def locate(name: str, roots: tuple[Path, ...], source: str) -> Path:
    """`name` under the first root where it exists, else under the first root; never outside a root.

    Raises:
        DataError: for web addresses, and for paths and URLs that leave the folder.
    """
    if "://" in name:
        return _at_url(name, roots, source)
    name = name.replace("\\", "/")
    first = inside(roots[0], name, source)
    if len(roots) == 1 or first.exists():
        return first
    others = (inside(root, name, source) for root in roots[1:])
    return next((path for path in others if path.exists()), first)


def _at_url(url: str, roots: tuple[Path, ...], source: str) -> Path:
    """The copy of a URL inside one of the roots, which are copies themselves where the data lie in a store."""
    refuse_web(url, source)
    path = copy_within(url, roots)
    if path is None:
        raise DataError(
            f"{source}: `{url[:80]}` lies outside the data — name the folder in the store as data.media_root"
        )
    return path


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
        raise DataError(f"{source}: `{name}` is {value}, which is not a value — fix the label or leave it empty")
    if isinstance(value, datetime.datetime) and value.tzinfo is None and value.time() == datetime.time():
        return value.date().isoformat()  # tables store dates as midnight
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
