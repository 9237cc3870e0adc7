"""Label Studio: documents as tasks with predictions and scores, and its annotations as decisions.

A task has a text area or choice for each field, named after it. The rows of a list are texts of JSON in one text area.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json, write_atomic, write_json
from mllm_tailor.core.sample import Media
from mllm_tailor.core.strict_json import dump_json, parse_json
from mllm_tailor.data.reviews.desk import Change, Desk, Reviewer
from mllm_tailor.data.reviews.documents import COPIES, Document, keep_copies
from mllm_tailor.data.reviews.labels import current_tree, finished_fields, undecided
from mllm_tailor.data.reviews.store import Entry, ReviewStore
from mllm_tailor.data.reviews.values import to_fields
from mllm_tailor.media.open import open_image

SHOWN = "document"  # name of the image in the labelling interface
LOCAL = "/data/local-files/?d="  # how Label Studio serves files of its LOCAL_FILES_DOCUMENT_ROOT
CONFIG = "label_config.xml"


# --- Export ----------------------------------------------------------------------------------------------------------


def export_tasks(store: ReviewStore, path: Path) -> int:
    """Write the documents as tasks, with `label_config.xml` and their images in `documents` beside them.

    Returns the number of tasks.

    Raises:
        DataError: for documents that hold more than images, or a file that is gone.
    """
    if path.suffix.lower() != ".json":
        raise DataError(f"{path}: tasks are one JSON document — let the name end in .json")
    tasks = [_task(entry, store, path.parent) for entry in store.entries()]
    write_json(path, tasks)
    write_atomic(path.with_name(CONFIG), _config(store.schema))
    return len(tasks)


def _task(entry: Entry, store: ReviewStore, folder: Path) -> dict[str, Any]:
    document = entry.document
    read = to_fields(current_tree(document, (), store.schema), store.schema)
    results = list(_results(read, store.schema, document.confidence))
    scores = [result["score"] for result in results if "score" in result]
    prediction = {"model_version": document.run, "result": results}
    if scores:
        prediction["score"] = min(scores)  # Label Studio sorts by it: the document with the most doubtful value first
    task: dict[str, Any] = {
        "data": {
            SHOWN: document.sha256,
            "file": document.file,
            "images": [LOCAL + name for name in _images(document, store, folder)],
        },
        "predictions": [prediction],
    }
    if entry.state == "done":
        fields = finished_fields(entry, store)
        task["annotations"] = [{"result": list(_results(fields, store.schema, {}))}]
    return task


def _images(document: Document, store: ReviewStore, folder: Path) -> list[str]:
    """Names of its images in `folder`, a page of a document drawn as one."""
    names = []
    for item, media in zip(document.media, document.located(store.folder), strict=True):
        if media.kind != "image":
            raise DataError(f"{document.file}: is no image — Label Studio gets images and pages only")
        whole = item.page is None and len(item.files) == 1 and Path(item.files[0].path).suffix.lower() != ".pdf"
        if whole:
            keep_copies(document, folder)
            names.append(item.files[0].copy)
            continue
        name = f"{COPIES}/{item.files[0].sha256}-{item.page or 0}.png"
        if not (folder / name).is_file():
            write_atomic(folder / name, _png(media))
        names.append(name)
    return names


def _png(media: Media) -> bytes:
    stream = io.BytesIO()
    open_image(media).save(stream, "PNG")
    return stream.getvalue()


def _results(
    fields: Mapping[str, Any], schema: Mapping[str, Any], confidence: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    for name, part in schema["properties"].items():
        value = fields[name]
        if value in ("", None, []):
            continue
        kind = "choices" if "enum" in part else "textarea"
        texts = [_text(row) for row in value] if isinstance(value, list) else [_text(value)]
        result: dict[str, Any] = {"from_name": name, "to_name": SHOWN, "type": kind}
        result["value"] = {"choices" if kind == "choices" else "text": texts}
        if name in confidence:
            result["score"] = confidence[name]
        yield result


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dump_json(value, indent=None)


def _config(schema: Mapping[str, Any]) -> str:
    lines = ["<View>", f'  <Image name="{SHOWN}" valueList="$images" zoom="true"/>']
    for name, part in schema["properties"].items():
        lines.append(f"  <Header value={quoteattr(name)}/>")
        if "enum" in part:
            choices = "".join(f"<Choice value={quoteattr(str(choice))}/>" for choice in part["enum"] if choice != "")
            lines.append(f'  <Choices name={quoteattr(name)} toName="{SHOWN}">{choices}</Choices>')
        else:
            most = "" if part.get("type") == "array" else ' maxSubmissions="1"'
            lines.append(f'  <TextArea name={quoteattr(name)} toName="{SHOWN}" editable="true"{most}/>')
    return "\n".join([*lines, "</View>", ""])


# --- Import ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """What became of the tasks of an export."""

    finished: int
    unannotated: int
    left: tuple[str, ...]  # why a task was left out, by task


def import_annotations(store: ReviewStore, path: Path) -> Imported:
    """Take the annotations of Label Studio's JSON export as decisions; documents that are finished stay as they are.

    Raises:
        DataError: for a file that is no such export.
    """
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, Mapping) for task in tasks):
        raise DataError(f"{path}: no list of tasks — export JSON from Label Studio")
    finished = unannotated = 0
    left = []
    for number, task in enumerate(tasks, 1):
        annotation = _annotation(task)
        if annotation is None:
            unannotated += 1
            continue
        try:
            _import(store, task, annotation)
            finished += 1
        except DataError as error:
            left.append(f"{path}:{number}: {error}")
    return Imported(finished, unannotated, tuple(left))


def _annotation(task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The annotation that counts, as in the layout `label_studio`: the ground truth, else the first."""
    stated = task.get("annotations")
    done = [item for item in stated if isinstance(item, Mapping)] if isinstance(stated, list) else []
    done = [item for item in done if not item.get("was_cancelled") and isinstance(item.get("result"), list)]
    return min(done, key=lambda item: not item.get("ground_truth"), default=None)


def _import(store: ReviewStore, task: Mapping[str, Any], annotation: Mapping[str, Any]) -> None:
    data = task.get("data")
    document = str(data.get(SHOWN, "")) if isinstance(data, Mapping) else ""
    entry = store.entry(document)
    if entry.state != "open":
        raise DataError(f"{entry.document.file}: is {entry.state} already")
    wanted = {name: _value(annotation["result"], name, part) for name, part in store.schema["properties"].items()}
    reviewer = Reviewer(f"label-studio:{document}", _who(annotation))
    desk = Desk(store)
    desk.hold(reviewer, document)
    try:
        changes = list(_changes(entry, wanted, store.schema))
        seconds = float(annotation.get("lead_time") or 0.0) / max(1, len(changes))
        for action, field, after in changes:
            entry = desk.change(reviewer, Change(document, action, entry.last, field, after, seconds))
        for field in undecided(entry, store.schema):  # who submits an annotation has looked at all of it
            entry = desk.change(reviewer, Change(document, "confirm", entry.last, field))
        desk.change(reviewer, Change(document, "finish", entry.last))
    finally:
        desk.release(reviewer)


def _who(annotation: Mapping[str, Any]) -> str:
    by = annotation.get("completed_by")
    name = by.get("email") or by.get("id") if isinstance(by, Mapping) else by
    return f"Label Studio {name}" if name not in (None, "") else "Label Studio"


def _value(results: Sequence[Any], name: str, schema: Mapping[str, Any]) -> Any:
    """What an annotation states of a field; empty where it states nothing."""
    texts: list[str] = []
    for result in results:
        if isinstance(result, Mapping) and result.get("from_name") == name and isinstance(result.get("value"), Mapping):
            stated = result["value"].get("choices", result["value"].get("text", []))
            texts += [str(text) for text in (stated if isinstance(stated, list) else [stated])]
    if schema.get("type") == "array":
        return [_parsed(text, name) for text in texts if text.strip()]
    text = "\n".join(texts)
    plain = schema.get("type") == "string" or "enum" in schema
    return text if plain else _parsed(text, name) if text.strip() else None


def _parsed(text: str, name: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{name}: {text[:60]!r} is not JSON ({error})") from None


def _changes(entry: Entry, wanted: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[Any, str, Any]]:
    """(action, field, value) of what differs. A list that differs gets new rows."""
    tree = current_tree(entry.document, entry.decisions, schema)
    fields = to_fields(tree, schema)
    for name, part in schema["properties"].items():
        if json.dumps(fields[name], sort_keys=True) == json.dumps(wanted[name], sort_keys=True):
            continue
        if part.get("type") == "array":
            rows: Mapping[int, Any] = tree.get(name) or {}
            yield from (("remove_row", f"{name}.{number}", None) for number in sorted(rows))
            first = max(rows, default=-1) + 1
            yield from (("add_row", f"{name}.{first + index}", row) for index, row in enumerate(wanted[name]))
        elif part.get("type") == "object":
            inner = wanted[name] if isinstance(wanted[name], Mapping) else {}
            yield from (("correct", f"{name}.{key}", inner.get(key)) for key in part["properties"])
        else:
            yield "correct", name, wanted[name]
