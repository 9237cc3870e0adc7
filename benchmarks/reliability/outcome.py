"""What a run or a prediction came to, without what differs between two undisturbed ones: times and memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_tailor.core.io import sha256

TIMES = {"seconds_left", "samples_per_second", "tokens_per_second", "memory", "peak_bytes"}  # and all in seconds
# Locks, checksums of files with times in them, times, times of files, a page with a date, and where work began.
IGNORED = {
    ".lock", ".owner.json", "manifest.json", "cost_estimate.json", "data_fingerprints.jsonl", "report.html",
    "environment.json",
}  # fmt: skip


def outcome(folder: Path) -> dict[str, Any]:
    """Every file that must be the same: weights by their checksum, rows and documents without times.

    Replies to held-out samples are compared as a set, since batches form anew when a run is continued.
    """
    files = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or file.name in IGNORED or "tensorboard" in name or file.name.startswith("process_"):
            continue
        files[name] = _content(file)
    return files


def _content(file: Path) -> Any:
    try:
        return _values(file)
    except ValueError:  # a damaged file that was left as it is
        return sha256(file)


def _values(file: Path) -> Any:
    if file.suffix == ".jsonl":
        rows = [_plain(json.loads(line)) for line in file.read_text().splitlines()]
        return sorted(rows, key=lambda row: str(row.get("id"))) if file.parent.name == "predictions" else rows
    if file.suffix == ".json":
        return _plain(json.loads(file.read_text()))
    return sha256(file)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if key not in TIMES and not key.endswith("seconds")}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Files that are not the same; of checkpoints the newest are compared, by what they hold."""
    return sorted(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
