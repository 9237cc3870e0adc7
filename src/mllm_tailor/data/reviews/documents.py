"""What is reviewed: a document, what the model read in it, and what was decided about its values."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import atomic_file, fingerprint, sha256, write_atomic
from mllm_tailor.core.sample import Media, MediaKind, Sample
from mllm_tailor.media.source import inside

COPIES = "documents"  # folder beside the database that holds a copy of every finished document

Kind = Literal["doubtful", "audit", "accepted"]
State = Literal["open", "done", "skipped"]
Action = Literal["confirm", "correct", "add_row", "remove_row", "finish", "skip", "undo"]


@dataclass(frozen=True)
class StoredFile:
    """A file that a document shows: where it was read, and its content."""

    path: str  # absolute
    sha256: str

    @property
    def copy(self) -> str:
        """Name of its copy, relative to the database's folder; equal contents share one."""
        return f"{COPIES}/{self.sha256}{Path(self.path).suffix.lower()}"


@dataclass(frozen=True)
class StoredMedia:
    """One image, page, recording or video of a document."""

    kind: MediaKind
    files: tuple[StoredFile, ...]  # several: views of one scene
    page: int | None = None
    span: tuple[float, float] | None = None

    def media(self, paths: Sequence[Path]) -> Media:
        """The same with its files at these paths."""
        return Media(self.kind, paths[0], span=self.span, page=self.page, views=tuple(paths) if paths[1:] else ())

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> StoredMedia:
        """The inverse of `dataclasses.asdict`."""
        files = tuple(StoredFile(str(file["path"]), str(file["sha256"])) for file in row["files"])
        span = row.get("span")
        return cls(row["kind"], files, row.get("page"), (float(span[0]), float(span[1])) if span else None)


@dataclass(frozen=True)
class Document:
    """A document as it was read. Its hash is that of its file, or of all it consists of where that is more."""

    sha256: str
    id: str
    file: str  # as the user knows it
    media: tuple[StoredMedia, ...]
    asked: Mapping[str, Any] = field(default_factory=dict)  # prompt, options and system text, where it brings any
    reading: Mapping[str, Any] = field(default_factory=dict)  # its row of predictions.jsonl
    run: str = ""  # that read it

    @property
    def accept(self) -> Mapping[str, bool]:
        """Values that need no eye."""
        return self.reading.get("accept") or {}

    @property
    def confidence(self) -> Mapping[str, float]:
        """By value."""
        return self.reading.get("confidence") or {}

    def located(self, folder: Path) -> tuple[Media, ...]:
        """Its media: the copies beside the database where they exist, else the files that were read."""
        return tuple(item.media([_locate(folder, file) for file in item.files]) for item in self.media)

    def copied(self, folder: Path) -> tuple[Media, ...]:
        """Its media as copies inside `folder`.

        Raises:
            DataError: for a name that leads out of the folder, and for a copy that is missing or damaged.
        """
        return tuple(item.media([self._copied(folder, file) for file in item.files]) for item in self.media)

    def _copied(self, folder: Path, file: StoredFile) -> Path:
        path = inside(folder, file.copy, self.file)
        if _checksum(path) != file.sha256:
            raise DataError(f"{path}: damaged (another checksum than {file.path} had) — put back a whole copy")
        return path


@dataclass(frozen=True)
class Decision:
    """One action of a reviewer, never changed or removed: an undo is an action of its own."""

    number: int
    document: str
    field: str  # path of the value; empty for finish and skip
    action: Action
    before: Any
    after: Any
    confidence: float | None
    seconds: float
    reviewer: str
    time: float  # seconds since 1970
    undoes: int | None = None

    def row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def _locate(folder: Path, file: StoredFile) -> Path:
    copy = folder / file.copy
    return copy if copy.is_file() else Path(file.path)


def make_document(sample: Sample, reading: Mapping[str, Any], run: str, folder: Path) -> Document:
    """A document of a sample that was read. Bytes that came inside a row are written beside the database.

    Raises:
        DataError: naming a file that cannot be read.
    """
    media = tuple(_stored(item, folder) for item in sample.media)
    asked = {
        name: value
        for name, value in (("prompt", sample.prompt), ("options", list(sample.options)), ("system", sample.system))
        if value
    }
    contents = {file.sha256 for item in media for file in item.files}
    whole = len(contents) == 1 and not asked and all(item.span is None for item in media)
    parts = [[item.kind, [file.sha256 for file in item.files], item.page, item.span] for item in media]
    identity = contents.pop() if whole else fingerprint(parts, asked)
    file = str(sample.extra.get("file") or sample.source or sample.id)
    return Document(identity, sample.id, file, media, asked, reading, run)


def _stored(media: Media, folder: Path) -> StoredMedia:
    if media.data is not None:
        digest = hashlib.sha256(media.data).hexdigest()
        path = folder / COPIES / digest
        if not path.is_file():
            write_atomic(path, media.data)
        return StoredMedia(media.kind, (StoredFile(str(path.absolute()), digest),), media.page, media.span)
    paths = media.views or ((media.path,) if media.path is not None else ())
    files = tuple(StoredFile(str(path.absolute()), _checksum(path)) for path in paths)
    return StoredMedia(media.kind, files, media.page, media.span)


def _checksum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}) — check the path and its permissions") from None


def keep_copies(document: Document, folder: Path) -> None:
    """Copy the files of a document beside the database, so that its labels stay usable whatever becomes of them.

    Raises:
        DataError: for a file that is gone, or that is no longer what was read.
    """
    for file in (file for item in document.media for file in item.files):
        target = folder / file.copy
        if target.is_file():
            continue
        if _checksum(Path(file.path)) != file.sha256:
            raise DataError(f"{file.path}: is not the file that was read — put that back, or read it again")
        with atomic_file(target) as partial:
            shutil.copyfile(file.path, partial)
