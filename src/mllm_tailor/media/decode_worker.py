"""A program that decodes files: one request a line in, one answer a line out (see `data.decode_check`).

It imports the decoders and nothing else of this package: every check of a data set starts it anew.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import fingerprint, sha256
from mllm_tailor.core.machine import limit_address_space
from mllm_tailor.core.sample import Media
from mllm_tailor.media.audio import read_audio
from mllm_tailor.media.open import open_image
from mllm_tailor.media.pdf import page_text
from mllm_tailor.media.perceptual_hash import picture_hash
from mllm_tailor.media.source import is_pdf
from mllm_tailor.media.video import read_frames

WORKER_BYTES = 6 * 2**30  # address space of one worker; the largest picture allowed needs about 2 GiB in passing
LONGEST_TEXT = 100_000  # characters of a page that are compared with labels


@dataclass(frozen=True)
class Decoded:
    """What decoding one file told: its checksum, size and picture hash, or the problem."""

    sha256: str = ""
    size: tuple[int, int] | None = None  # (width, height) in pixels of the upright picture
    looks: str = ""  # picture hash in hex; empty for clips and recordings
    problem: str | None = None
    text: str = ""  # the text layer of a page of a PDF


def decode_one(media: Media) -> Decoded:
    """Decode an image or recording wholly, of a video one frame, in this process.

    The checksum comes last: only the decoders know the limits of size, and a file beyond them is not read.
    """
    try:
        size, looks, text = None, "", ""
        if media.kind == "image":
            image = open_image(media)
            size, looks = image.size, picture_hash(image)
            text = page_text(media)[:LONGEST_TEXT] if is_pdf(media) else ""
        elif media.kind == "video":
            read_frames(media, 1)  # the middle one; decoding whole videos would take longer than training on them
        else:
            read_audio(media)
        return Decoded(_checksum(media), size, looks, text=text)
    except DataError as error:
        return Decoded(problem=str(error))


def _checksum(media: Media) -> str:
    """SHA-256 of the file, or of all its views."""
    if media.data is not None:
        return hashlib.sha256(media.data).hexdigest()
    paths = media.views or ((media.path,) if media.path is not None else ())
    try:
        sums = [sha256(path) for path in paths]
    except OSError as error:
        raise DataError(f"{media.describe()}: cannot be read ({error.strerror}) — check its permissions") from None
    return sums[0] if len(sums) == 1 else fingerprint(sums)


def serve() -> None:
    """Answer requests until standard input closes."""
    limit_address_space(WORKER_BYTES)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a chatty decoder library cannot disturb the answers
    for line in sys.stdin:
        request = json.loads(line)
        data = base64.b64decode(request["data"]) if "data" in request else None
        path = Path(request["path"]) if request["path"] else None
        span = tuple(request["span"]) if request["span"] else None
        views = tuple(Path(view) for view in request["views"])
        decoded = decode_one(Media(request["kind"], path, data, span, request["page"], views))
        answers.write(json.dumps(decoded.__dict__) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
