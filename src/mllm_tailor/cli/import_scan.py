"""Keeps what transformers finds when it searches its model files for the names that they export.

An entry of the cache holds for one installation: it names the list of installed files, which every installation writes
anew. Where there is no such list beside the package, as in an editable installation, the files are searched each time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mllm_tailor.core.io import cache_folder, write_atomic

# Folder and file names to what is below them; in a folder, the sets of libraries that files need to their names.
Structure = Mapping[Any, Any]
Scan = Callable[[str | os.PathLike[str]], Structure]

MODELS = "models"  # the folder of the package with nearly all of its files


def keep_scan(scan: Scan) -> Scan:
    """The function, with its result for the folder of all models read from the cache."""

    def scan_once(module_path: str | os.PathLike[str]) -> Structure:
        path = Path(module_path)
        folder = path.parent if path.suffix == ".py" else path
        installation = _installation(folder) if folder.name == MODELS else None
        if installation is None:
            return scan(module_path)
        file = cache_folder() / "imports" / f"{folder.parent.name}.json"
        if (kept := _read(file, installation)) is not None:
            return kept
        structure = scan(module_path)
        with suppress(OSError):  # where the cache cannot be written, files are searched again next time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps({"installation": installation, "structure": _encode(structure)}))
        return structure

    return scan_once


def _read(file: Path, installation: list[Any]) -> Structure | None:
    """What is kept for this installation; None where nothing is."""
    try:
        kept = json.loads(file.read_bytes())
        return _decode(kept["structure"]) if kept["installation"] == installation else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError):  # none yet, or damaged
        return None


def _installation(folder: Path) -> list[Any] | None:
    """What identifies the installed package that `folder` is in; None where that is not known."""
    package = folder.parent
    records = list(package.parent.glob(f"{package.name}-*.dist-info/RECORD"))
    if len(records) != 1:
        return None
    state = records[0].stat()
    return [str(records[0]), state.st_size, state.st_mtime_ns]


def _encode(structure: Structure) -> list[list[Any]]:
    return [
        [key, _encode(value)]
        if isinstance(key, str)
        else [sorted(key), {file: sorted(names) for file, names in value.items()}]
        for key, value in structure.items()
    ]


def _decode(pairs: list[list[Any]]) -> dict[Any, Any]:
    return {
        key if isinstance(key, str) else frozenset(key): _decode(value)
        if isinstance(key, str)
        else {file: set(names) for file, names in value.items()}
        for key, value in pairs
    }
