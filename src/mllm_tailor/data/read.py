"""From a path to samples: recognise the layout, read every row, make ids unique."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import first_object
from mllm_tailor.data.layouts import LAYOUTS
from mllm_tailor.data.layouts.base import Folder, Layout

SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Dataset:
    """Samples as found, the layout they were found in, and what a reader should know about them."""

    samples: tuple[Sample, ...]
    layout: str = ""
    path: Path = Path(".")
    notes: tuple[str, ...] = ()


def read_samples(
    path: str | Path, layout: str | None = None, on_issue: Callable[[DataIssue], object] | None = None
) -> Dataset:
    """Read labelled samples from a folder or file.

    Rows that cannot be used are given to `on_issue`; without it, any error among them refuses the whole.

    Raises:
        DataError: naming the rows, or what was looked for when no layout is recognised.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file — check `data.train`")
    folder = Folder(path)
    name, notes = (layout, []) if layout else detect(folder)
    reader: Layout = LAYOUTS.load(name)
    if layout and not reader.detect(folder):
        raise DataError(f"{path}: is not laid out as `{layout}` ({LAYOUTS.summary(layout)}) — leave `layout` out")
    samples: list[Sample] = []
    faults: list[DataIssue] = []
    for item in reader.read(folder):
        (faults if isinstance(item, DataIssue) else samples).append(item)  # type: ignore[arg-type]
    errors = [fault for fault in faults if fault.severity == "error"]
    if on_issue is not None:
        for fault in faults:
            on_issue(fault)
    elif errors:
        raise DataError(list_issues(errors))
    if not samples:
        reason = f": {errors[0].source}: {errors[0].problem}" if errors else ""
        raise DataError(f"{path}: no readable sample{reason} — check the files")
    notes += [str(fault) for fault in faults if fault.severity == "warning"]
    return Dataset(tuple(unique_ids(samples)), name, path, tuple(notes))


def detect(folder: Folder) -> tuple[str, list[str]]:
    """The layout of `path`, and a note when it could be read in other ways too.

    Raises:
        DataError: saying what was looked for and what is there instead.
    """
    found = [name for name in LAYOUTS if LAYOUTS.load(name).detect(folder)]
    path = folder.path
    if not found:
        looked = "\n".join(f"  {name}: {LAYOUTS.summary(name)}" for name in LAYOUTS)
        raise DataError(f"{path}: no known layout — found {_seen(path)}. Looked for:\n{looked}")
    others = ", ".join(found[1:])
    return found[0], [f"read as `{found[0]}`; could also be read as {others} (`data.layout`)"] if others else []


def _seen(path: Path) -> str:
    """What lies at a path no layout recognises: kinds of files, folders, and what the first label file names."""
    if path.is_file():
        return f"one {path.suffix or 'nameless'} file{_columns(path)}"
    entries = sorted(path.iterdir())
    kinds = Counter(entry.suffix.lower() or "files without suffix" for entry in entries if entry.is_file())
    folders = [f"{entry.name}/" for entry in entries if entry.is_dir()]
    parts = [f"{count} {kind}" for kind, count in kinds.most_common(5)] + folders[:5]
    label = next((columns for entry in entries if entry.is_file() and (columns := _columns(entry))), "")
    return (", ".join(parts) or "an empty folder") + label


def _columns(file: Path) -> str:
    """The names in the first row of a label file, none of which names a file or a conversation."""
    names = list(first_object(file)) if file.suffix.lower() in (".json", ".jsonl", ".ndjson") else []
    if file.suffix.lower() in (".csv", ".tsv"):
        with file.open(encoding="utf-8", errors="replace") as stream:
            names = re.split("[,;\t]", stream.readline(1000).strip())
    return f" ({file.name} has {', '.join(names[:10])}, none of which names a file)" if names else ""


def list_issues(faults: Sequence[DataIssue]) -> str:
    """Faults by row, the first few in full."""
    lines = [str(fault) for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"… and {len(faults) - SHOWN_FAULTS} more")
    return "\n".join(lines)


def unique_ids(samples: Sequence[Sample]) -> list[Sample]:
    """Samples that share an id get `-1`, `-2`, … in order of what they say, so that reordering rows changes nothing."""
    counts = Counter(sample.id for sample in samples)
    if len(counts) == len(samples):
        return list(samples)
    shared = [index for index, sample in enumerate(samples) if counts[sample.id] > 1]
    taken = {identifier for identifier, count in counts.items() if count == 1}
    numbers: Counter[str] = Counter()  # the last one given, of each id: no smaller one is free again
    result = list(samples)
    for index in sorted(shared, key=lambda index: _said(samples[index])):
        sample = samples[index]
        numbers[sample.id] += 1
        while (name := f"{sample.id}-{numbers[sample.id]}") in taken:
            numbers[sample.id] += 1
        taken.add(name)
        result[index] = replace(sample, id=name)
    return result


def _said(sample: Sample) -> tuple[str, str, str, str]:
    media = ",".join(item.describe() for item in sample.media)
    return sample.prompt, str(sample.answer), repr(sorted(sample.fields.items(), key=lambda item: item[0])), media
