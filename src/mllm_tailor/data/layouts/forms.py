"""Documents whose words are labelled: FUNSD (a JSON file a page) and WildReceipt (a list with classes by number).

The words with their places become `ocr`, as far as transcription needs them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import MAX_LINE_BYTES, read_json, read_limited
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.data.columns import locate
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import json_head, objects_in, split_of
from mllm_tailor.data.keys import unread_keys
from mllm_tailor.data.layouts.base import Folder, Layout, Roots
from mllm_tailor.data.text_rows import text_lines
from mllm_tailor.media.open import pages_of

ANNOTATIONS, IMAGES = "annotations", "images"
CLASS_LIST = "class_list.txt"
FORM_KEYS = ("id", "text", "box", "label", "linking", "words")
RECEIPT_KEYS, MARK_KEYS = ("file_name", "height", "width", "annotations"), ("box", "text", "label")
VALUE_ENDING, UNNAMED = "_value", ("Ignore", "Others")


# --- FUNSD ------------------------------------------------------------------------------------------------------------


def _funsd_folders(folder: Folder) -> list[tuple[Path, str | None]]:
    """Folders with `annotations` and `images`: the data set's own, or those inside it (`training_data`)."""
    inner = [folder.path / entry.name for entry in folder.listing() if split_of(entry.name) and entry.is_dir()]
    pairs = [(folder.path, None), *((path, split_of(path.name)) for path in inner)]
    return [(path, split) for path, split in pairs if _is_funsd(path, folder)]


def _is_funsd(path: Path, folder: Folder) -> bool:
    first = next((entry for entry in folder.listing(path / ANNOTATIONS) if entry.name.endswith(".json")), None)
    form = json_head(Path(first.path)).get("form") if first else None
    return isinstance(form, list) and bool(form) and isinstance(form[0], dict) and "linking" in form[0]


def read_funsd(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a page: the pairs of question and answer that are linked."""
    for path, split in _funsd_folders(folder):
        for entry in folder.listing(path / ANNOTATIONS):
            if not entry.name.endswith(".json"):
                continue
            file = Path(entry.path)
            source = f"{file}:1"
            try:
                name = folder.with_suffix(file.stem, (path / IMAGES,)) or f"{file.stem}.png"
                media = pages_of(locate(name, (path / IMAGES,), source), "image")
                content = read_json(file)
                entries, words = _funsd_form(content, source)
                yield from unread_keys(content, ("form",), source)
                yield from _unread_items(content["form"], entries, source)
                yield Sample(
                    file.stem, media, fields={"entries": entries}, split=split, source=source, extra={"ocr": words}
                )
            except DataError as error:
                yield DataIssue.of(error, source)


def _funsd_form(content: Any, source: str) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """The linked pairs, and the words with their corners."""
    form = content.get("form") if isinstance(content, Mapping) else None
    if not isinstance(form, list) or not all(_is_item(item) for item in form):
        raise DataError(f"{source}: `form` should be a list of objects with an id and lists of words — correct it")
    by_id = {item["id"]: item for item in form}
    answers: dict[Any, list[Any]] = defaultdict(list)
    for item in form:
        links = item.get("linking")
        for link in links if isinstance(links, list) else ():
            if _is_pair(link) and item["id"] == link[0] and link[1] in by_id:
                answers[link[0]].append(link[1])
    entries = [
        {"question": str(item.get("text") or ""), "answer": " ".join(str(by_id[other].get("text")) for other in others)}
        for item in form
        if item.get("label") == "question" and ((others := answers[item["id"]]) or True)
    ]
    words = [word for item in form for word in objects_in(item, "words", source)]
    return entries, [{"quad": _corners(word.get("box"), source), "text": str(word.get("text"))} for word in words]


def _unread_items(form: list[Any], entries: list[dict[str, str]], source: str) -> Iterator[DataIssue]:
    """Warnings for keys of a form, and for its texts that are no question or answer and are read as `ocr` alone."""
    used = {text for entry in entries for text in entry.values()}
    known = [item["id"] for item in form]
    for item in form:
        yield from unread_keys(item, FORM_KEYS, source, "form item")
        words = item.get("words")
        for word in words if isinstance(words, list) else ():
            yield from unread_keys(word, ("box", "text"), source, "word")
        links = item.get("linking")
        if any(
            not _is_link(link, item["id"], known) for link in (links if isinstance(links, list) else [links]) if link
        ):
            problem = "a `linking` is no pair of this item and another one, and is left out"
            yield DataIssue(source, problem, "correct the links", None, "warning")
        stated = str(item.get("text") or "")
        if stated and item.get("label") == "answer" and not any(stated in text for text in used):
            problem = f"the answer {stated[:80]!r} is linked to no question, and is left out"
            yield DataIssue(source, problem, "link it to its question", None, "warning")
        elif stated and item.get("label") not in ("question", "answer"):
            problem = f"texts of the class {item.get('label')!r} are not learned"
            yield DataIssue(source, problem, "label them as question and answer to learn them", None, "warning")


def _is_link(link: Any, own: Any, known: list[Any]) -> bool:
    return isinstance(link, list) and len(link) == 2 and own in link and all(end in known for end in link)


def _is_item(item: Any) -> bool:
    """Whether an item of a form has an id, and lists of links and of words where it has any."""
    if not isinstance(item, Mapping) or not isinstance(item.get("id"), (int, str)):
        return False
    lists = [item.get(name) or [] for name in ("linking", "words")]
    return all(isinstance(value, list) for value in lists) and all(isinstance(word, Mapping) for word in lists[1])


def _is_pair(link: Any) -> bool:
    return isinstance(link, list) and len(link) == 2 and all(isinstance(end, (int, str)) for end in link)


def _corners(box: Any, source: str) -> list[float]:
    """The four corners of a box, or the corners themselves, clockwise from the top left."""
    if not isinstance(box, list) or len(box) not in (4, 8) or not all(isinstance(value, (int, float)) for value in box):
        raise DataError(f"{source}: a box is four numbers or four corners, found {str(box)[:80]} — correct the label")
    if len(box) == 8:
        return [float(value) for value in box]
    left, top, right, bottom = (float(value) for value in box)
    return [left, top, right, top, right, bottom, left, bottom]


# --- WildReceipt ------------------------------------------------------------------------------------------------------


def _wildreceipt_lists(folder: Folder) -> list[Path]:
    if not (folder.path / CLASS_LIST).is_file():
        return []
    names = [entry.name for entry in folder.listing() if entry.name.endswith(".txt") and entry.name != CLASS_LIST]
    return [folder.path / name for name in names]


def read_wildreceipt(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a receipt: the texts of each class, joined in the order of the file."""
    content = read_limited(folder.path / CLASS_LIST, MAX_LINE_BYTES)
    lines = content.decode("utf-8", errors="replace").splitlines()
    names = {number: name for number, _, name in (line.strip().partition(" ") for line in lines if line.strip())}
    for file in _wildreceipt_lists(folder):
        roots = folder.roots(file)
        for line in text_lines(file):
            if isinstance(line, DataIssue):
                yield line
                continue
            try:
                values = _parse(line.text, line.source)
                yield _receipt(values, names, roots, (line.source, split_of(file.stem)))
                yield from _unread_marks(values, names, line.source)
            except DataError as error:
                yield DataIssue.of(error, line.source)


def _parse(text: str, source: str) -> Mapping[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f"{source}: not valid JSON ({error}) — correct or remove this row") from None
    row: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    marks = row.get("annotations")
    whole = isinstance(marks, list) and all(isinstance(mark, Mapping) for mark in marks)
    if not whole or not isinstance(row.get("file_name"), str):
        raise DataError(f"{source}: a row is an object with `file_name` and `annotations` — correct or remove it")
    return row


def _receipt(row: Mapping[str, Any], names: Mapping[str, str], roots: Roots, where: tuple[str, str | None]) -> Sample:
    source, split = where
    media = pages_of(locate(row["file_name"], roots, source), "image")
    fields: dict[str, str] = {}
    marks: Sequence[Any] = row["annotations"]
    for mark in marks:
        name = names.get(str(mark.get("label")))
        if name is None:
            raise DataError(f"{source}: the class {mark.get('label')} is not in {CLASS_LIST} — add it there")
        if name.endswith(VALUE_ENDING) and name not in UNNAMED:
            field = name.removesuffix(VALUE_ENDING)
            fields[field] = f"{fields[field]} {mark.get('text')}" if field in fields else str(mark.get("text"))
    words = [{"quad": _corners(mark.get("box"), source), "text": str(mark.get("text"))} for mark in marks]
    return Sample(Path(row["file_name"]).stem, media, fields=fields, split=split, source=source, extra={"ocr": words})


def _unread_marks(row: Mapping[str, Any], names: Mapping[str, str], source: str) -> Iterator[DataIssue]:
    yield from unread_keys(row, RECEIPT_KEYS, source)
    for mark in row["annotations"]:
        yield from unread_keys(mark, MARK_KEYS, source, "annotation")
        name = names[str(mark.get("label"))]
        if not name.endswith(VALUE_ENDING) or name in UNNAMED:
            problem = f"texts of the class `{name}` are not learned"
            yield DataIssue(source, problem, f"only classes that end in {VALUE_ENDING} are fields", None, "warning")


FUNSD = Layout(lambda folder: bool(_funsd_folders(folder)), read_funsd)
WILDRECEIPT = Layout(lambda folder: bool(_wildreceipt_lists(folder)), read_wildreceipt, beside=(CLASS_LIST,))
