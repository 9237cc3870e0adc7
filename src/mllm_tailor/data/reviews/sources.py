"""Reviews as further sources of a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.data.reviews.store import DATABASE, ReviewStore


def review_sources(paths: Sequence[Path]) -> tuple[list[dict[str, str]], int]:
    """An entry of `data.sources` for each review, named after its folder, and the number of their finished documents.

    Raises:
        DataError: for a file that is no review, or one without a finished document.
    """
    sources, count = [], 0
    for path in paths:
        file = path / DATABASE if path.is_dir() else path
        done = ReviewStore(file).progress().done
        if not done:
            raise DataError(f"{file}: no document is finished — confirm or correct one in `tailor review` first")
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.absolute().parent.name).lstrip("._-") or "review"
        sources.append({"name": name[:100], "train": str(file), "layout": "review"})
        count += done
    return sources, count
