"""The SQLite file of a review: its tables, and connections that lose nothing that was answered.

Write-ahead logging with `synchronous=FULL`: a transaction that has ended is on the disk, also when the process or the
machine dies at once.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm_tailor.core.errors import DataError

MAGIC = b"SQLite format 3\x00"
APPLICATION = 0x7461696C  # "tail", in the header of the file
VERSION = 1
WAIT = 30.0  # seconds for the transaction of another process to end

TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE documents (
  sha256 TEXT PRIMARY KEY,
  content TEXT NOT NULL,              -- JSON: id, file, media, asked, reading, run
  kind TEXT NOT NULL CHECK (kind IN ('doubtful', 'audit', 'accepted')),
  worth REAL NOT NULL,                -- how many of its values are expected to be wrong
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
  undoes INTEGER UNIQUE REFERENCES decisions (number)
) STRICT;
CREATE INDEX of_document ON decisions (document, number);
"""


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
    # An archive on a disk that cannot be written has no log beside it.
    address = path.absolute().as_uri() + ("" if writable else "?immutable=1")
    connection = sqlite3.connect(address, uri=True, timeout=WAIT, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        if writable:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
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
                for statement in TABLES.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
    if (version := _version(connection)) != VERSION:
        raise DataError(f"{path}: a review of version {version}, and this program reads {VERSION} — update it")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


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
