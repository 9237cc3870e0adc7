"""A review: documents with their readings, the queue, who works on what, and every decision."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import restore_partials
from mllm_tailor.core.strict_json import dump_json
from mllm_tailor.data.reviews.database import connect, insert, transaction, verify
from mllm_tailor.data.reviews.documents import COPIES, Decision, Document, Kind, State, StoredMedia
from mllm_tailor.data.reviews.values import form_schema
from mllm_tailor.tasks import Task, open_task

DATABASE = "corrections.db"
LEASE = 600.0  # seconds without a sign of life after which another reviewer gets the document

EFFECTIVE = "undoes IS NULL AND number NOT IN (SELECT undoes FROM decisions WHERE undoes IS NOT NULL)"


class ConflictError(DataError):
    """Somebody else works on the document, or has decided about it meanwhile."""


@dataclass(frozen=True)
class Entry:
    """A document and where it stands."""

    document: Document
    kind: Kind
    worth: float
    state: State
    decisions: tuple[Decision, ...]  # those that count, in their order: undone ones are left out
    last: int  # number of the last action about it, undone ones and undos included; 0: none


@dataclass(frozen=True)
class Progress:
    """How far a review is."""

    documents: int
    waiting: int  # in the queue
    done: int
    skipped: int
    accepted: int  # documents that need no eye and are no part of the audit
    audited: int
    confirmed: int
    corrected: int


class ReviewStore:
    """The database of a review. Each call is one transaction on a connection of its own, so any thread may call."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self.path, self.now = path, now
        with self.reading() as connection:
            verify(connection, path)
            stated = connection.execute("SELECT value FROM facts WHERE name = 'task'").fetchone()
        if stated is None:
            raise DataError(f"{path}: a review without its task — begin it with `tailor review RUN FOLDER`")
        self.task = _open(json.loads(stated[0]), path)
        self.schema = form_schema(self.task)

    @classmethod
    def begin(cls, path: Path, task: Mapping[str, Any], *, now: Callable[[], float] = time.time) -> ReviewStore:
        """Make the database, or open one of the same task.

        Raises:
            DataError: when it holds documents of another task.
        """
        form_schema(_open(task, path))
        path.parent.mkdir(parents=True, exist_ok=True)
        restore_partials(path.parent / COPIES)
        with _as_data_errors(path), closing(connect(path, create=True)) as connection, transaction(connection):
            stated = connection.execute("SELECT value FROM facts WHERE name = 'task'").fetchone()
            if stated is None:
                insert(connection, "facts", "task", dump_json(task, indent=None))
            elif json.loads(stated[0]) != json.loads(dump_json(task)):
                raise DataError(f"{path}: holds documents of another task — name another file with --db")
        return cls(path, now=now)

    @property
    def folder(self) -> Path:
        """The folder of the database, which also holds copies of the finished documents."""
        return self.path.parent

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for looking."""
        with _as_data_errors(self.path), closing(connect(self.path)) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection inside one transaction."""
        with self.reading() as connection, transaction(connection):
            yield connection

    # --- Documents ---------------------------------------------------------------------------------------------------

    def add(self, document: Document, kind: Kind, worth: float) -> bool:
        """Add a document; of one that is there, replace the reading unless somebody decided about it.

        Returns whether the reading was taken.
        """
        content = _content(document)
        with self.writing() as connection:
            begun = connection.execute("SELECT 1 FROM decisions WHERE document = ?", (document.sha256,)).fetchone()
            if begun:
                return False
            update = "content = excluded.content, kind = excluded.kind, worth = excluded.worth, sum = excluded.sum"
            update = f"ON CONFLICT (sha256) DO UPDATE SET {update}"
            insert(connection, "documents", document.sha256, content, kind, float(worth) + 0.0, update=update)
        return True

    def entry(self, document: str) -> Entry:
        """One document.

        Raises:
            DataError: when it is not part of the review.
        """
        with self.reading() as connection:
            return read_entry(connection, document)

    def entries(self, *states: State) -> list[Entry]:
        """The documents of these states (default: all), in order of id and hash."""
        with self.reading() as connection:
            rows = connection.execute("SELECT sha256, state FROM documents").fetchall()
            entries = [read_entry(connection, row["sha256"]) for row in rows if not states or row["state"] in states]
        return sorted(entries, key=lambda entry: (entry.document.id, entry.document.sha256))

    def decisions(self) -> list[Decision]:
        """Every action in its order, undone ones and undos included."""
        with self.reading() as connection:
            return [_decision(row) for row in connection.execute("SELECT * FROM decisions ORDER BY number")]

    def progress(self) -> Progress:
        """Counts over the whole review."""
        with self.reading() as connection:

            def count(condition: str) -> int:
                return int(connection.execute(f"SELECT count(*) FROM {condition}").fetchone()[0])  # noqa: S608

            return Progress(
                documents=count("documents"),
                waiting=count("documents WHERE state = 'open' AND kind <> 'accepted'"),
                done=count("documents WHERE state = 'done'"),
                skipped=count("documents WHERE state = 'skipped'"),
                accepted=count("documents WHERE kind = 'accepted'"),
                audited=count("documents WHERE state = 'done' AND kind = 'audit'"),
                confirmed=count(f"decisions WHERE action = 'confirm' AND {EFFECTIVE}"),
                corrected=count(f"decisions WHERE action IN ('correct', 'add_row', 'remove_row') AND {EFFECTIVE}"),
            )


def read_entry(connection: sqlite3.Connection, document: str) -> Entry:
    """One document with the decisions that count.

    Raises:
        DataError: when it is not part of the review.
    """
    row = connection.execute("SELECT * FROM documents WHERE sha256 = ?", (document,)).fetchone()
    if row is None:
        raise DataError(f"{document[:12]}: no document of this review")
    rows = connection.execute(
        f"SELECT * FROM decisions WHERE document = ? AND {EFFECTIVE} ORDER BY number",  # noqa: S608
        (document,),
    ).fetchall()
    last = connection.execute("SELECT max(number) FROM decisions WHERE document = ?", (document,)).fetchone()[0]
    return Entry(
        _document(row["sha256"], json.loads(row["content"])),
        row["kind"],
        float(row["worth"]),
        row["state"],
        tuple(map(_decision, rows)),
        int(last or 0),
    )


def _content(document: Document) -> str:
    values = dataclasses.asdict(document)
    del values["sha256"]
    return dump_json(values, indent=None)


def _document(sha256: str, values: Mapping[str, Any]) -> Document:
    media: Sequence[Mapping[str, Any]] = values["media"]
    return Document(
        sha256,
        str(values["id"]),
        str(values["file"]),
        tuple(map(StoredMedia.from_row, media)),
        values["asked"],
        values["reading"],
        str(values["run"]),
    )


def _decision(row: sqlite3.Row) -> Decision:
    values = {name: row[name] for name in row.keys() if name != "sum"}  # noqa: SIM118 (a Row iterates over its values)
    return Decision(**values | {"before": json.loads(values["before"]), "after": json.loads(values["after"])})


def _open(task: Mapping[str, Any], path: Path) -> Task:
    if len(task) != 1:
        raise DataError(f"{path}: its task is damaged")
    return open_task(*next(iter(task.items())))


@contextmanager
def _as_data_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be used ({error}) — check the disk, or put back a copy") from None
