"""Which layout a folder has; of an unknown one, what lies there and which layouts come nearest."""

from __future__ import annotations

import difflib
import re
from collections import Counter

from mllm_tailor.core.errors import DataError
from mllm_tailor.data.damaged_files import refuse_damaged
from mllm_tailor.data.layouts import LAYOUTS
from mllm_tailor.data.layouts.base import ROW_SUFFIXES, Folder, LabelFile, Layout

MOST_FOLDERS = 5  # looked into where the data set has no layout
NEAREST = 3  # layouts named for an unknown folder
ALIKE = 0.75  # similarity of two words, 0 to 1, from which they may stand for each other
SHOWN_NAMES = 10
# Layouts that read any row which names a file: no other way to read rows that a particular layout knows.
GENERAL = frozenset({"hugging_face", "parquet", "metadata", "json", "csv"})


def detect(folder: Folder) -> tuple[str, list[str]]:
    """The layout of a folder, and a note when it could be read in other ways too.

    Raises:
        DataError: saying what lies there and which layouts come nearest.
    """
    names = [name for name in LAYOUTS if LAYOUTS.load(name).detect(folder)]
    if not names:
        refuse_damaged(folder)
        if inner := _inside(folder):
            raise DataError(
                f"{folder.path}: no known layout, but its folder `{inner[0]}` is laid out as `{inner[1]}` — name that "
                "folder as the data"
            )
        nearest = "\n".join(f"  {name}: {LAYOUTS.summary(name)}" for name in nearest_layouts(folder))
        raise DataError(
            f"{folder.path}: no known layout — found {_seen(folder)}. The nearest of {len(list(LAYOUTS))} layouts "
            f"(docs/data.md):\n{nearest}"
        )
    others = ", ".join(name for name in names[1:] if name not in GENERAL or names[0] in GENERAL)
    return names[0], [f"read as `{names[0]}`; could also be read as {others} (`data.layout`)"] if others else []


def _inside(folder: Folder) -> tuple[str, str] | None:
    """The first folder inside that has a known layout, such as the one of an unpacked archive, and the layout."""
    folders = [entry.name for entry in folder.listing() if entry.is_dir() and not entry.name.startswith((".", "__"))]
    for name in folders[:MOST_FOLDERS]:
        inner = Folder(folder.path / name, folder.media_root)
        if layout := next((layout for layout in LAYOUTS if LAYOUTS.load(layout).detect(inner)), None):
            return name, layout
    return None


def unread_files(folder: Folder, layout: Layout) -> list[LabelFile]:
    """Files of rows that lie beside those which a layout reads, in a shape it does not read."""
    if layout.files is None:
        return []
    read = {file.path for file in layout.files(folder)}
    return [file for file in folder.label_files(*ROW_SUFFIXES) if file.path not in read and file.first]


def nearest_layouts(folder: Folder) -> list[str]:
    """The layouts whose keys, files and folders are most like those of the folder."""
    words = _words(folder)

    def likeness(name: str) -> float:
        wanted = re.findall(r"`([^`]+)`|(?<!\w)(\.[a-z]+)", LAYOUTS.summary(name))
        scores = [max((_alike(word or suffix, found) for found in words), default=0.0) for word, suffix in wanted]
        return sum(scores) / max(1, len(scores))

    return sorted(LAYOUTS, key=likeness, reverse=True)[:NEAREST]  # sorted is stable: of equals the particular first


def _alike(one: str, other: str) -> float:
    ratio = difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()
    return ratio if ratio >= ALIKE else 0.0


def _words(folder: Folder) -> set[str]:
    """Names of files and folders, their suffixes, and the keys of label files."""
    names = {entry.name for entry in folder.listing()[:1000]} | {folder.path.name}
    keys = {str(key) for file in folder.label_files(*ROW_SUFFIXES)[:SHOWN_NAMES] for key in (*file.first, *file.head)}
    return names | keys | {name[name.rindex(".") :] for name in names if "." in name}


def _seen(folder: Folder) -> str:
    """What lies at a path that no layout recognises: kinds of files, folders, and the keys of the first label file."""
    files = folder.label_files(*ROW_SUFFIXES)
    label = next((text for file in files if (text := _keys(file))), "")
    if folder.path.is_file():
        return f"one {folder.path.suffix or 'nameless'} file{label}"
    entries = folder.listing()
    kinds = Counter(_suffix(entry.name) for entry in entries if entry.is_file())
    folders = [f"{entry.name}/" for entry in entries if entry.is_dir()]
    parts = [f"{count} {kind}" for kind, count in kinds.most_common(5)] + folders[:5]
    links = [link.name for link in dict.fromkeys(folder.links_out)]
    if links:
        parts.append(f"links that lead out of the folder and are not followed ({', '.join(links[:SHOWN_NAMES])})")
    return (", ".join(parts) or "an empty folder") + label


def _suffix(name: str) -> str:
    return name[name.rindex(".") :].lower() if "." in name else "files without suffix"


def _keys(file: LabelFile) -> str:
    """The keys of the first row of a label file, none of which names a file or a conversation."""
    names = list(map(str, file.first))
    return f" ({file.path.name} has {', '.join(names[:SHOWN_NAMES])}, none of which names a file)" if names else ""
