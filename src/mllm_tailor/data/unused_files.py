"""Files of a data set that no sample is read from and no sample shows: named by kind, so that none is passed over."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from mllm_tailor.core.io import walk
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.layouts.base import Folder, Layout
from mllm_tailor.media.source import media_kind

MOST_WALKED = 500_000  # files; a folder with more is no data set alone, and nothing is stated of it
HIDDEN = (".", "__")
# Notes and programs, which hold no labels.
NOTE_SUFFIXES = frozenset(
    {".md", ".rst", ".log", ".html", ".htm", ".css", ".js", ".py", ".sh", ".ipynb", ".yaml", ".yml", ".toml", ".ini"}
    | {".lock", ".sha256", ".md5", ".db", ".bib", ".cff"}
)
NOTE_NAMES = ("license*", "licence*", "readme*", "notice*", "copying*", "changelog*", "makefile", "dockerfile")


def unused_files(
    folder: Folder, layout: Layout, samples: Sequence[Sample], issues: Sequence[DataIssue]
) -> Iterator[DataIssue]:
    """A warning for each kind of file that nothing was read from; label files that an issue names are left out."""
    if not folder.path.is_dir():
        return
    whole = folder.path.resolve()
    used = {str(path) for sample in samples for media in sample.media for path in (media.path, *media.views) if path}
    read = _files_of(sample.source for sample in samples) | _files_of(issue.source for issue in issues)
    read |= {str(file.path) for file in layout.files(folder)} if layout.files is not None else set()
    unused: dict[str, list[str]] = defaultdict(list)
    for number, relative in enumerate(_walk(folder.path)):
        if number > MOST_WALKED:
            return
        if str(whole / relative) in used or str(folder.path / relative) in read or _is_note(relative, layout):
            continue
        unused[Path(relative).suffix.lower()].append(relative)
    errors = sum(issue.severity == "error" for issue in issues)
    for suffix, names in unused.items():
        if media_kind(f"a{suffix}") and len(names) <= errors:
            continue  # they may be of the rows that cannot be read, which are named
        kind = f"{suffix} files" if suffix else "files without suffix"
        stated = "shown by" if media_kind(f"a{suffix}") else "read for"
        problem = f"{len(names):,} {kind} are {stated} no sample, such as {names[0]}"
        yield DataIssue(str(folder.path), problem, "label them, or move them away", None, "warning")


def _files_of(sources: Iterable[str]) -> set[str]:
    """The files that sources of the form "file:row" or "file:key:row" may stand for."""
    found = set(sources)
    heads = {source.rpartition(":")[0] for source in found}
    while heads - {""}:
        found |= heads
        heads = {head.rpartition(":")[0] for head in heads}
    return found


def _walk(path: Path) -> Iterator[str]:
    """Every file below a folder, relative to it; hidden ones and links to folders are left out."""
    for root, folders, names in walk(path):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        for name in names:
            if not name.startswith(HIDDEN):
                yield os.path.relpath(os.path.join(root, name), path)  # noqa: PTH118


def _is_note(relative: str, layout: Layout) -> bool:
    name = os.path.basename(relative).lower()  # noqa: PTH119
    patterns = (*NOTE_NAMES, *layout.beside)
    return Path(name).suffix in NOTE_SUFFIXES or any(fnmatch(name, pattern) for pattern in patterns)
