"""The SQLite file of a review: its tables, and connections that lose nothing that was answered.

A rollback journal with `synchronous=EXTRA`: a transaction that has ended is on the disk, also when the process or the
machine dies at once. Between two transactions everything is in the one file, so a copy of it is whole; a write-ahead
log beside it would be lost by a copy, and whatever of it was damaged is passed over in silence.

SQLite does not notice a value that changed on the disk. Every row therefore has a checksum, that of a decision with the
one before it; they are verified when a review is opened, with SQLite's own check of tables and indices.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import fingerprint

MAGIC = b"SQLite format 3\x00"
APPLICATION = 0x7461696C  # "tail", in the header of the file
VERSION = 2
WAIT = 30.0  # seconds for the transaction of another process to end

TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, sum TEXT NOT NULL) STRICT;
CREATE TABLE documents (
  sha256 TEXT PRIMARY KEY,
  content TEXT NOT NULL,              -- JSON: id, file, media, asked, reading, run
  kind TEXT NOT NULL CHECK (kind IN ('doubtful', 'audit', 'accepted')),
  worth REAL NOT NULL,                -- how many of its values are expected to be wrong
  sum TEXT NOT NULL,                  -- checksum of the columns before
  state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'skipped')),
  holder TEXT NOT NULL DEFAULT '',    -- the session that works on it
  held_until REAL NOT NULL DEFAULT 0  -- seconds since 1970
) STRICT;
CREATE INDEX queue ON documents (state, kind, worth DESC);
CREATE TABLE decisions (              -- only ever added to
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  document TEXT NOT NULL REFERENCES documents (sha256),
  field TEXT NOT NULL,
  action TEXT NOT NULL,
  before TEXT NOT NULL,               -- JSON
  after TEXT NOT NULL,                -- JSON
  confidence REAL,
  seconds REAL NOT NULL,
  reviewer TEXT NOT NULL,
  time REAL NOT NULL,
  undoes INTEGER UNIQUE REFERENCES decisions (number),
  sum TEXT NOT NULL                   -- checksum of all but the number, and of the sum before
) STRICT;
CREATE INDEX of_document ON decisions (document, number);
"""
SUMMED = {  # columns under a checksum
    "facts": ("name", "value"),
    "documents": ("sha256", "content", "kind", "worth"),
    "decisions": ("document", "field", "action", "before", "after", "confidence", "seconds", "reviewer", "time",
                  "undoes"),
}  # fmt: skip
JOURNALS = ("-journal", "-wal")  # what a process that was killed leaves beside the file, for the next one to finish


def is_database(path: Path) -> bool:
    """Whether a file is the database of a review, by its header; no table is read."""
    try:
        with path.open("rb") as file:
            head = file.read(72)
    except OSError:
        return False
    return head.startswith(MAGIC) and int.from_bytes(head[68:72], "big") == APPLICATION


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """A connection, for one thread.

    Raises:
        DataError: for a file that is missing or no review.
    """
    if not create and not path.is_file():
        raise DataError(f"{path}: no such review — `tailor review RUN FOLDER` begins one")
    if path.is_file() and path.stat().st_size and not is_database(path):
        raise DataError(f"{path}: not the database of a review — name the corrections.db of `tailor review`")
    writable = create or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
    if not writable and any(path.with_name(path.name + ending).exists() for ending in JOURNALS):
        raise DataError(
            f"{path}: its last transaction is to be finished or taken back — open it where it can be written"
        )
    # In an archive on a disk that cannot be written, nothing can be made beside the file.
    address = path.absolute().as_uri() + ("" if writable else "?immutable=1")
    connection = sqlite3.connect(address, uri=True, timeout=WAIT, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        if writable:
            connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("PRAGMA foreign_keys = ON")
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection) == 0:
        with transaction(connection):
            if _version(connection) == 0:  # nobody was faster
                _make_tables(connection)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
    if (version := _version(connection)) != VERSION:
        fix = "update this program" if version > VERSION else "export its labels with the program that wrote it"
        raise DataError(f"{path}: a review of version {version}, and this program reads {VERSION} — {fix}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in TABLES.split(";\n"):
        if statement.strip():
            connection.execute(statement)


def insert(connection: sqlite3.Connection, table: str, *values: Any, update: str = "") -> None:
    """Add a row with its checksum; `update` is what happens where its key is there already."""
    columns = SUMMED[table]
    marks = ", ".join("?" * (len(columns) + 1))
    statement = f"INSERT INTO {table} ({', '.join(columns)}, sum) VALUES ({marks}) {update}"  # noqa: S608
    connection.execute(statement, (*values, fingerprint(_last_sum(connection, table), *values)))


def _last_sum(connection: sqlite3.Connection, table: str) -> str:
    """What the checksum of the next row begins with: of decisions the one before, so that none can be missing."""
    if table != "decisions":
        return table
    row = connection.execute("SELECT sum FROM decisions ORDER BY number DESC LIMIT 1").fetchone()
    return row[0] if row else table


def verify(connection: sqlite3.Connection, path: Path) -> None:
    """Compare everything with its checksums.

    Raises:
        DataError: for a damaged file.
    """
    problem = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
    if problem != "ok" or _schema(connection) != _expected_schema():
        raise _damaged(path, problem if problem != "ok" else "its tables are others")
    for table, columns in SUMMED.items():
        before = table
        order = "number" if table == "decisions" else columns[0]
        for row in connection.execute(f"SELECT {', '.join(columns)}, sum FROM {table} ORDER BY {order}"):  # noqa: S608
            *values, stated = row
            if stated != fingerprint(before, *values):
                raise _damaged(path, f"a row of its {table}")
            before = stated if table == "decisions" else table


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: damaged ({what}) — check the disk, and put back a copy of the file")


def _schema(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")
    return [tuple(map(str, row)) for row in rows]


@lru_cache
def _expected_schema() -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        _make_tables(connection)
        return _schema(connection)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything in the block, or nothing; others that write wait."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
