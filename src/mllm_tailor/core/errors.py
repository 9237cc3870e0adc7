"""The errors a user can fix. Everything else is a defect of ours and shows a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class TailorError(Exception):
    """Something the user can fix; the message says what is wrong, where, and what to do about it."""


class RecipeError(TailorError):
    """A recipe that cannot be understood or that asks for things which do not go together."""


class DataError(TailorError):
    """A file, row or label that cannot be used; the message starts with the file and row."""


class MissingFileError(DataError, FileNotFoundError):
    """A file that is not there, for callers who can do without it."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: no such file — check the path, or restore the file")
        self.filename = str(path)

    def __str__(self) -> str:
        return str(self.args[0])  # OSError would show its filename alone


class ModelError(TailorError):
    """A checkpoint, adapter or processor that cannot be opened or does not fit."""


class RunError(TailorError):
    """A run folder that is missing, incomplete or belongs to another recipe."""


class StorageError(TailorError):
    """A failure of the machine: a full disk, a folder that cannot be written, a file that cannot be read."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the most similar known words, or all of them when none is similar.

    >>> nearest("leraning_rate", ["learning_rate", "epochs"])
    'did you mean `learning_rate`?'
    """
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=2, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"`{match}`" for match in close) + "?"
    return "known: " + ", ".join(words) if words else "nothing is known here"
