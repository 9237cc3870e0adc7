"""Checksums of everything that a run or an exported model holds, in one manifest, verified whenever it is opened.

A file enters the manifest when it is complete. One that is written again leaves it first, so that a crash in between
leaves a file without a checksum, never one with a wrong checksum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError, MissingFileError, ModelError, RunError
from mllm_tailor.core.io import fingerprint, read_json, sha256, write_json
from mllm_tailor.core.summed_rows import SUMS

MANIFEST = "manifest.json"
FORMAT = 1
LARGE = ("adapter", "model", "held_out_media")  # verified when they are used; also merged copies
MERGED_COPIES = "merged-"  # begins the names of folders that `predict --engine vllm` writes

Entries = dict[str, dict[str, Any]]  # path inside the folder -> bytes and sha256


def record(folder: Path, *paths: Path) -> None:
    """Enter files, and everything inside folders, that are complete; those that are absent leave the manifest."""
    entries = _without(_read(folder), folder, paths)
    for path in paths:
        for file in _files(path):
            entries[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    _write(folder, entries)


def forget(folder: Path, *paths: Path) -> None:
    """Take files and folders out, before they are written again or removed."""
    entries = _read(folder)
    left = _without(entries, folder, paths)
    if left.keys() != entries.keys():
        _write(folder, left)


def recorded(folder: Path, *paths: Path) -> bool:
    """Whether each of these was complete once and all of it is still there."""
    if not (folder / MANIFEST).is_file():
        return False
    entries = _read(folder)
    return all(_under(entries, folder, path) and _all_there(entries, folder, path) for path in paths)


def checksums(folder: Path, path: Path) -> dict[str, str]:
    """The SHA-256 of each file that was complete once, of a file or folder inside `folder`."""
    return {name: entry["sha256"] for name, entry in _under(_read(folder), folder, path).items()}


def was_recorded(folder: Path, path: Path) -> bool:
    """Whether this was complete once, be it still there or not."""
    return bool(_under(_read(folder), folder, path))


def nothing_lost(folder: Path) -> bool:
    """Whether every file that was complete once is still there; merged copies for vLLM are made again when needed."""
    return all((folder / name).is_file() for name in _read(folder) if not name.startswith(MERGED_COPIES))


def present(folder: Path, *paths: Path) -> bool:
    """Whether each of these exists, recorded or not, and lacks no file that was recorded."""
    entries = _read(folder)
    return all(path.exists() and _all_there(entries, folder, path) for path in paths)


def _all_there(entries: Entries, folder: Path, path: Path) -> bool:
    return all((folder / name).is_file() for name in _under(entries, folder, path))


def verify(folder: Path, *paths: Path, absent: bool = False) -> None:
    """Compare files (without `paths`: all but large ones) with their checksums.

    With `absent`, files that are gone are no fault: they will be written again.

    Raises:
        RunError: naming the damaged file and the way back.
    """
    entries = _read(folder)
    if paths:
        chosen = {name: entry for path in paths for name, entry in _under(entries, folder, path).items()}
    else:
        chosen = {name: entry for name, entry in entries.items() if not _is_large(name)}
    for name, entry in chosen.items():
        file = folder / name
        if not file.is_file():
            if absent:
                continue
            raise RunError(f"{file}: missing — {_way_back(name, 'put it back')}")
        if not _matches(file, entry):
            raise RunError(f"{file}: damaged (its checksum differs from the one in {MANIFEST}) — {_way_back(name)}")


def seal(folder: Path) -> None:
    """Give a finished folder, such as an exported model, a manifest of everything in it."""
    create(folder)
    record(folder, *(file for file in folder.iterdir() if file.name != MANIFEST))


def verify_export(folder: Path) -> None:
    """Compare an exported model with its manifest, where it has one.

    Raises:
        ModelError: naming the damaged file and the way back.
    """
    if not (folder / MANIFEST).is_file():
        return
    fix = f"export it again or put back a whole copy; or, if it was changed on purpose, remove {MANIFEST} there"
    try:
        entries = _read(folder)
    except RunError:
        raise ModelError(f"{folder / MANIFEST}: damaged — {fix}") from None
    for name, entry in entries.items():
        file = folder / name
        if not _matches(file, entry):
            raise ModelError(f"{file}: {'damaged' if file.is_file() else 'missing'} — {fix}")


def _matches(file: Path, entry: Mapping[str, Any]) -> bool:
    return file.is_file() and file.stat().st_size == entry["bytes"] and sha256(file) == entry["sha256"]


def _way_back(name: str, restore: str = "put back a whole copy") -> str:
    if name == "recipe.yaml":
        return f"{restore}, or begin anew with --fresh; for other settings give the run another name"
    if name == "data_fingerprints.jsonl":  # nothing else states what the data were
        return f"{restore}, or begin anew with --fresh"
    if restore == "put it back":
        return f"{restore}, or run the same `tailor run` command to write it again"
    top = name.partition("/")[0]
    what = f"remove the folder {top}" if "/" in name and top != "predictions" else "remove it"
    return f"{restore}, or {what} and run the same `tailor run` command, which writes it again"


def _is_large(name: str) -> bool:
    top, slash, _ = name.partition("/")
    return bool(slash) and (top in LARGE or top.startswith(MERGED_COPIES))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != SUMS)


def _under(entries: Mapping[str, dict[str, Any]], folder: Path, path: Path) -> Entries:
    name = path.relative_to(folder).as_posix()
    return {key: entry for key, entry in entries.items() if key == name or key.startswith(f"{name}/")}


def _without(entries: Entries, folder: Path, paths: Iterable[Path]) -> Entries:
    gone = {key for path in paths for key in _under(entries, folder, path)}
    return {key: entry for key, entry in entries.items() if key not in gone}


def _read(folder: Path) -> Entries:
    """The entries, proved by the manifest's own checksum.

    Raises:
        RunError: when the manifest is missing or damaged.
    """
    path = folder / MANIFEST
    fix = f"put back a whole copy of {MANIFEST}, or begin anew with --fresh"
    try:
        document = read_json(path)
        entries: Entries = document["files"]
        if document["format"] != FORMAT or document["sha256"] != fingerprint(entries):
            raise ValueError
    except MissingFileError:
        raise RunError(f"{path}: missing, so that nothing in this run can be verified — {fix}") from None
    except (DataError, KeyError, TypeError, ValueError):
        raise RunError(f"{path}: damaged — {fix}") from None
    return entries


def create(folder: Path) -> None:
    """Write an empty manifest."""
    _write(folder, {})


def _write(folder: Path, entries: Entries) -> None:
    entries = dict(sorted(entries.items()))
    write_json(folder / MANIFEST, {"format": FORMAT, "sha256": fingerprint(entries), "files": entries})
