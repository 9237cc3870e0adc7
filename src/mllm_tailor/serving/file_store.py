"""Uploaded files in one folder, each with a note of what it is. Their names are made here, never taken from clients."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm_tailor.core.io import read_json, write_atomic, write_json
from mllm_tailor.serving.errors import ApiError

NUMBER = re.compile(r"(file|batch)-[0-9a-f]{24}")


class FileStore:
    """The folder."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

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
        write_json(self._note(number), row)
        return row

    def row(self, number: str) -> dict[str, Any]:
        """The note of a file or batch.

        Raises:
            ApiError: when there is none.
        """
        if not NUMBER.fullmatch(number) or not self._note(number).is_file():
            raise ApiError(404, "no such file or batch")
        row: dict[str, Any] = read_json(self._note(number))
        return row

    def write(self, row: dict[str, Any]) -> None:
        """Write the note of a batch."""
        write_json(self._note(row["id"]), row)

    def rows(self, kind: str) -> Iterator[dict[str, Any]]:
        """All notes of files or batches, the oldest first."""
        notes = [read_json(path) for path in self.folder.glob(f"{kind}-*.json")]
        yield from sorted(notes, key=lambda row: (row["created_at"], row["id"]))

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
