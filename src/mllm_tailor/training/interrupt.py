"""Ctrl-C stops a training between two steps, never inside one."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from mllm_tailor.core.errors import RunError

logger = logging.getLogger(__name__)


class Interrupted(RunError):
    """Training was stopped by the user; everything up to the last step is saved."""


class StopOnSignal:
    """Within, Ctrl-C during a step asks to stop after it; a second Ctrl-C stops at once.

    Outside a step (`busy` is False), Ctrl-C raises KeyboardInterrupt as usual, so an evaluation is not waited for.
    """

    def __init__(self) -> None:
        self.requested = False
        self.busy = False
        self._previous: Any = None

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or not self.busy:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("Stopping after this step (Ctrl-C again: at once) …")
