"""LLaMA-Factory: `dataset_info.json` names the files of each set, their format and the names of their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, build, kind_of
from mllm_tailor.data.keys import unread_keys
from mllm_tailor.data.layouts import chat, completions, query_response
from mllm_tailor.data.layouts.base import ROW_SUFFIXES, Folder, LabelFile, Layout, Roots
from mllm_tailor.media.source import inside

INFO = "dataset_info.json"
LOCAL, REMOTE = "file_name", ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
MEDIA = ("images", "videos", "audios")
FORMATS = ("alpaca", "sharegpt")
PAIR = ("chosen", "rejected", "kto_tag")
ENTRY_KEYS = (LOCAL, "file_sha1", "formatting", "columns", "tags", "ranking", "split")
# Columns and tags as LLaMA-Factory names them where an entry does not.
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
SHAREGPT = {"messages": "conversations", "system": "system", "tools": "tools"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}


def detect(folder: Folder) -> bool:
    """Whether `dataset_info.json` describes sets of LLaMA-Factory (Hugging Face writes another file of this name)."""
    return any(_is_entry(entry) for entry in _head(folder).values())


def _head(folder: Folder) -> dict[str, Any]:
    path = folder.path / INFO if folder.path.is_dir() else folder.path
    return LabelFile(path).head if path.name == INFO and path.is_file() else {}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and any(name in entry for name in (LOCAL, *REMOTE))


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """The samples of every set whose files are there; sets of a hub are named."""
    info = folder.outer / INFO
    try:
        entries = read_json(info)
    except DataError as error:
        yield DataIssue.of(error, str(info))
        return
    if not isinstance(entries, dict):
        yield DataIssue(str(info), f"should be an object of sets, found {kind_of(entries)}", "correct the file")
        return
    for name, entry in entries.items():
        source = f"{info}:{name}"
        try:
            if not _is_entry(entry):
                raise DataError(f"{source}: names no file of the set — add `{LOCAL}`, or take the set out")
            if LOCAL not in entry:
                yield DataIssue(
                    source, "lies on a hub and is not fetched", "download it and name its file", None, "warning"
                )
                continue
            if entry.get("formatting", "alpaca") not in FORMATS:
                raise DataError(f"{source}: `formatting` is {entry['formatting']!r} — use {' or '.join(FORMATS)}")
            yield from unread_keys(entry, ENTRY_KEYS, source, "set", "take it out, or select the rows beforehand")
            yield from unread_keys(entry.get("columns"), (*ALPACA, *SHAREGPT, *MEDIA, *PAIR), source, "set's columns")
            yield from unread_keys(entry.get("tags"), TAGS, source, "set's tags")
            for file in _files(folder, entry, source):
                make = partial(_samples, entry=entry, roots=folder.roots(file.path))
                yield from build(file.rows(), make)
        except DataError as error:
            yield DataIssue.of(error, source)


def _files(folder: Folder, entry: Mapping[str, Any], source: str) -> list[LabelFile]:
    """The files of a set: the one it names, or those in the folder it names."""
    path = inside(folder.outer, str(entry[LOCAL]), source)
    split = entry.get("split") if isinstance(entry.get("split"), str) else None
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [LabelFile(file, split) for file in paths if file.name.lower().endswith(ROW_SUFFIXES) and file.is_file()]
    if not files:
        raise DataError(f"{source}: no file {entry[LOCAL]} — restore it, or take the set out of {INFO}")
    return files


def _samples(row: Row, *, entry: Mapping[str, Any], roots: Roots) -> Iterator[Sample | DataIssue]:
    """The samples of a row, its columns renamed to those of the layouts that it is read as."""
    columns, tags = _names(entry, "columns"), _names(entry, "tags")
    values = dict(row.values)
    for name, column in columns.items():
        if column not in values:
            problem = f"no column `{column}`, which {INFO} names as `{name}`"
            yield DataIssue(row.source, problem, f"correct {INFO}, or add it to the rows", None, "warning")
    media = {name: values.pop(columns.get(name, name)) for name in MEDIA if columns.get(name, name) in values}
    if entry.get("formatting", "alpaca") == "alpaca" and not isinstance(values.get(columns.get("messages", "")), list):
        yield from _alpaca(row, values, media, columns, roots)
    else:
        yield from _sharegpt(row, values, media, (columns, tags), roots)


def _names(entry: Mapping[str, Any], key: str) -> dict[str, str]:
    stated = entry.get(key)
    return {str(name): str(value) for name, value in stated.items()} if isinstance(stated, Mapping) else {}


def _alpaca(
    row: Row, values: dict[str, Any], media: dict[str, Any], columns: Mapping[str, str], roots: Roots
) -> Iterator[Sample | DataIssue]:
    stated = {name: values.pop(columns.get(name, usual), None) for name, usual in ALPACA.items()}
    asked = [text for name in ("prompt", "query") if (text := stated[name]) not in (None, "")]
    turns = {"history": stated["history"], "system": stated["system"], "response": stated["response"]}
    pair = [values.pop(columns[name], None) for name in ("chosen", "rejected") if name in columns]
    if len(pair) == 2:
        turns["response"] = pair[0]
        values["rejected"] = pair[1]
    values |= _undesired(values, columns)
    values |= media | turns | {"query": "\n".join(map(str, asked))}
    return query_response.samples_of(Row(row.source, values, row.split), roots)


def _sharegpt(
    row: Row,
    values: dict[str, Any],
    media: dict[str, Any],
    names: tuple[Mapping[str, str], Mapping[str, str]],
    roots: Roots,
) -> Iterator[Sample | DataIssue]:
    columns, tags = names[0], TAGS | dict(names[1])
    stated = {name: values.pop(columns.get(name, usual), None) for name, usual in SHAREGPT.items()}
    pair = {name: values.pop(columns[name], None) for name in ("chosen", "rejected") if name in columns}
    messages = [{"role": "system", "content": stated["system"]}] if stated["system"] else []
    if not isinstance(stated["messages"], list):
        found = kind_of(stated["messages"])
        raise DataError(f"{row.source}: `{columns.get('messages', 'conversations')}` should be a list, found {found}")
    messages += [_message(turn, tags, row.source) for turn in stated["messages"]]
    values |= _undesired(values, columns)
    if stated["tools"]:
        values["tools"] = stated["tools"]
    if pair:
        values |= {name: [_message(value, tags, row.source)] for name, value in pair.items()}
        return completions.samples_of(Row(row.source, values | media | {"prompt": messages}, row.split), roots)
    return chat.samples_of(Row(row.source, values | media | {"messages": messages}, row.split), roots)


def _undesired(values: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The mark of KTO rows under the name that conversation rows have for it; taken out of `values`."""
    return {"label": values.pop(columns["kto_tag"], None)} if "kto_tag" in columns else {}


def _message(turn: Any, tags: Mapping[str, str], source: str) -> dict[str, Any]:
    """A message in the words of chat rows."""
    roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", tags["system_tag"]: "system"}
    role = str(turn.get(tags["role_tag"])) if isinstance(turn, Mapping) else ""
    if role not in roles:
        raise DataError(f"{source}: a turn has the role {role!r}, none of {', '.join(roles)} — correct this row")
    others = {key: value for key, value in turn.items() if key not in (tags["role_tag"], tags["content_tag"])}
    return {**others, "role": roles[role], "content": turn.get(tags["content_tag"])}


def _all_files(folder: Folder) -> list[LabelFile]:
    """`dataset_info.json` and the files that its sets name."""
    entries = [entry for entry in _head(folder).values() if _is_entry(entry) and isinstance(entry.get(LOCAL), str)]
    named = [folder.outer / entry[LOCAL] for entry in entries]
    inner = [file for path in named if path.is_dir() for file in path.iterdir()]
    return [LabelFile(path) for path in (folder.outer / INFO, *named, *inner)]


LAYOUT = Layout(detect, read, _all_files)
