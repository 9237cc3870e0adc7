"""Lines of text files that are no tables, in UTF-8, UTF-16 or Windows-1252; an unreadable line is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mllm_tailor.core.io import MAX_LINE_BYTES
from mllm_tailor.data.csv_rows import encoding_of
from mllm_tailor.data.issues import DataIssue


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end, and where it stands as "file:row"."""

    source: str
    text: str
    number: int


def text_lines(path: Path) -> Iterator[Line | DataIssue]:
    """Every line that is not blank; what cannot be read as text is an issue that names its line."""
    encoding = encoding_of(path)
    if encoding == "cp1252":
        yield DataIssue(f"{path}:1", "not UTF-8 text, read as Windows-1252", "save it as UTF-8", None, "warning")
    number = 0
    try:
        with path.open(encoding=encoding, errors="surrogateescape") as stream:
            while text := stream.readline(MAX_LINE_BYTES):
                number += 1
                source = f"{path}:{number}"
                if len(text) == MAX_LINE_BYTES and not text.endswith("\n"):
                    yield DataIssue(source, f"a line of over {MAX_LINE_BYTES:,} characters", "break it, or remove it")
                    return
                if any("\udc80" <= character <= "\udcff" for character in text if not text.isascii()):
                    yield DataIssue(source, "not UTF-8 text", "save the file as UTF-8")
                elif text.strip():
                    yield Line(source, text.rstrip("\r\n"), number)
    except UnicodeError:
        yield DataIssue(f"{path}:{number + 1}", "not readable text from here on", "save the file as UTF-8")
    except OSError as error:
        yield DataIssue(str(path), f"cannot be read ({error.strerror})", "check its permissions")
