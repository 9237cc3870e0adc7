"""Decode every file before training, in processes of their own: a file that kills its decoder is a fault like others.

A worker runs `media.decode_worker`: one request a line in, one answer a line out. So the file being decoded when a
worker dies or stalls is always known, nothing is pickled, and the user's own script is never imported again.
"""

from __future__ import annotations

import base64
import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mllm_tailor.core.machine import cpu_count
from mllm_tailor.core.sample import Media
from mllm_tailor.media.decode_worker import Decoded

FILE_SECONDS = 60.0
FILES_PER_WORKER = 16  # starting a process costs what decoding about this many images does


def decode_all(
    media: Sequence[Media], workers: int | None = None, progress: Callable[[], object] = lambda: None
) -> list[Decoded]:
    """Decode every file; `progress` is called once for each, from several threads."""
    count = min(workers or cpu_count(), math.ceil(len(media) / FILES_PER_WORKER)) or 1
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    everyone = [_Worker() for _ in range(count)]
    for worker in everyone:
        idle.put(worker)

    def decode(item: Media) -> Decoded:
        worker = idle.get()
        try:
            return worker.decode(item)
        finally:
            idle.put(worker)
            progress()

    try:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(decode, media))
    finally:
        for worker in everyone:
            worker.stop()


class _Worker:
    """One decoding process, started when first needed and again after a crash."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def decode(self, media: Media) -> Decoded:
        """Decode in the process; one that ends without an answer, perhaps killed from outside, is replaced once."""
        request = _request(media)
        for _ in range(2):
            answer, stalled = self._ask(request)
            if answer is not None:
                return answer
            self.stop()
            if stalled:
                return Decoded(problem=f"{media.describe()}: is not decoded within {FILE_SECONDS:.0f} s — replace it")
        return Decoded(problem=f"{media.describe()}: brings the decoder down, twice — replace it")

    def _ask(self, request: str) -> tuple[Decoded | None, bool]:
        """The answer, or None where the process ended; and whether that was for taking too long."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        stalled = threading.Event()

        def give_up() -> None:
            stalled.set()
            process.kill()

        timer = threading.Timer(FILE_SECONDS, give_up)
        timer.start()
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (BrokenPipeError, ValueError):
            answer = ""
        finally:
            timer.cancel()
        return (_from_json(json.loads(answer)) if answer.endswith("\n") else None), stalled.is_set()

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            command = [sys.executable, "-m", "mllm_tailor.media.decode_worker"]
            pipe, silent = subprocess.PIPE, subprocess.DEVNULL
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=silent, text=True, encoding="utf-8", env=environment
            )
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _request(media: Media) -> str:
    request: dict[str, Any] = {"kind": media.kind, "path": str(media.path) if media.path else None}
    request |= {"page": media.page, "span": media.span, "views": [str(view) for view in media.views]}
    if media.data is not None:
        request["data"] = base64.b64encode(media.data).decode()
    return json.dumps(request)


def _from_json(values: dict[str, Any]) -> Decoded:
    return Decoded(**{**values, "size": tuple(values["size"]) if values["size"] else None})


def look(media: Media) -> Decoded:
    """Only whether the file is there and not empty."""
    try:
        if (len(media.data) if media.data is not None else os.stat(media.path or "").st_size) == 0:  # noqa: PTH116
            return Decoded(problem=f"{media.describe()}: the file is empty — replace it or leave the row out")
    except OSError:
        return Decoded(problem=f"{media.describe()}: no such file — check the path in this row, or restore the file")
    return Decoded()
