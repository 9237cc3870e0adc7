"""Uploaded files in one folder, each with a note of what it is. Their names are made here, never taken from clients.

A note holds the checksum of its file and one of its own, so that nothing damaged is answered or given out.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import fingerprint, read_json, restore_partials, sha256, write_atomic, write_json
from mllm_tailor.run.lock import take
from mllm_tailor.serving.errors import ApiError

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"(file|batch)-[0-9a-f]{24}")


class FileStore:
    """The folder."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = FileLock(folder / ".lock", thread_local=False)  # a server may end in another thread

    def own(self) -> None:
        """Keep other servers out, which would answer the same batches.

        Raises:
            RunError: when another server has the folder.
        """
        take(self._lock, lambda: f"{self.folder}: another server keeps its files there — name another folder")
        restore_partials(self.folder)  # uploads during which a server was killed

    def close(self) -> None:
        """Let others have the folder."""
        self._lock.release()

    def add(self, data: bytes, name: str, purpose: str) -> dict[str, Any]:
        """Keep a file.

        Raises:
            ApiError: when there are too many.
        """
        if sum(1 for _ in self.rows("file")) >= self.most:
            raise ApiError(413, f"{self.most} files are kept at most — delete some")
        number = new_number("file")
        write_atomic(self.content(number), data)
        return self.note(number, name, purpose)

    def note(self, number: str, name: str, purpose: str) -> dict[str, Any]:
        """Write the note of a file whose content is there."""
        row = {
            "id": number,
            "object": "file",
            "bytes": self.content(number).stat().st_size,
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self.write(row)
        return row

    def row(self, number: str) -> dict[str, Any]:
        """The note of a file or batch.

        Raises:
            ApiError: when there is none.
        """
        if not NUMBER.fullmatch(number) or not self._note(number).is_file():
            raise ApiError(404, "no such file or batch")
        try:
            return self._read(self._note(number))[0]
        except DataError as error:
            logger.error("%s", error)
            raise ApiError(500, f"{number}: its note is damaged; the server's log has the reason") from None

    def write(self, row: dict[str, Any]) -> None:
        """Write the note of a file or batch."""
        content = self.content(row["id"])
        digest = sha256(content) if content.is_file() else ""
        write_json(self._note(row["id"]), {"row": row, "content": digest, "sha256": fingerprint(row, digest)})

    def _read(self, path: Path) -> tuple[dict[str, Any], str]:
        """A note, and the checksum of the file that it is about.

        Raises:
            DataError: for a damaged one.
        """
        note = read_json(path)
        try:
            row, digest, stated = note["row"], note["content"], note["sha256"]
            if stated != fingerprint(row, digest) or f"{row['id']}.json" != path.name:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path}: damaged — put back a whole copy, or remove it with {path.stem}") from None
        return row, digest

    def rows(self, kind: str) -> Iterator[dict[str, Any]]:
        """All notes of files or batches, the oldest first; damaged ones are logged and left out."""
        notes = []
        for path in self.folder.glob(f"{kind}-*.json"):
            try:
                notes.append(self._read(path)[0])
            except DataError as error:
                logger.error("%s", error)
        yield from sorted(notes, key=lambda row: (row["created_at"], row["id"]))

    def read(self, number: str) -> bytes:
        """The bytes of a file, as they were written.

        Raises:
            ApiError: for a file that is missing or damaged.
        """
        self.row(number)
        path = self.content(number)
        if not path.is_file() or sha256(path) != self._read(self._note(number))[1]:
            logger.error("%s: damaged or missing: its checksum is not the one in %s", path, self._note(number).name)
            raise ApiError(500, f"{number}: damaged or missing on the server — upload it again")
        return path.read_bytes()

    def content(self, number: str) -> Path:
        """Where the bytes of a file are.

        Raises:
            ApiError: for a name that is none of ours.
        """
        if not NUMBER.fullmatch(number):
            raise ApiError(404, "no such file or batch")
        return self.folder / number

    def remove(self, number: str) -> None:
        """Forget a file."""
        self.row(number)
        self.content(number).unlink(missing_ok=True)
        self._note(number).unlink(missing_ok=True)

    def _note(self, number: str) -> Path:
        return self.folder / f"{number}.json"


def new_number(kind: str) -> str:
    """A name that cannot be guessed."""
    return f"{kind}-{secrets.token_hex(12)}"
