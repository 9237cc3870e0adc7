"""Run the page until it is told to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mllm_tailor.data.reviews.desk import Desk
from mllm_tailor.data.reviews.store import ReviewStore
from mllm_tailor.review.app import make_app
from mllm_tailor.serving.listen import listen
from mllm_tailor.serving.settings import ServeSettings


def serve_review(
    database: Path,
    settings: ServeSettings,
    *,
    audit: float,
    name: str,
    next_step: str,
    on_ready: Callable[[], None],
) -> None:
    """Serve the page of a review. SIGTERM and Ctrl-C end it; what was answered is on the disk.

    Raises:
        RunError: for a page that is open to other machines without a key.
        DataError: when the database cannot be opened.
    """
    settings.check()
    app = make_app(Desk(ReviewStore(database), audit=audit), settings, name=name, next_step=next_step)
    on_ready()
    listen(app, settings)
