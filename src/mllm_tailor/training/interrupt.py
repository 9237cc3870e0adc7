"""Stop between two steps, never inside one: Ctrl-C, and the budget of minutes."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.progress import console


class Interrupted(RunError):
    """Training was stopped by the user; everything up to the last step is saved."""


class StopOnSignal:
    """While it is entered, Ctrl-C asks to stop after the current step; a second one stops at once.

    Outside a step (`busy` is False), Ctrl-C raises KeyboardInterrupt as always: an evaluation need not end first.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.busy = False
        self._before: Any = None

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted or not self.busy:
            raise KeyboardInterrupt
        self.wanted = True
        console.print("Stopping after this step (Ctrl-C again: at once) …")
