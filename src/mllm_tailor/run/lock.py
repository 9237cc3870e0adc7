"""One owner per run folder: a lock of the operating system, which a crash releases, and who holds it."""

from __future__ import annotations

import datetime
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import read_json, write_json

logger = logging.getLogger(__name__)
LOCK, OWNER = ".lock", ".owner.json"  # in the run folder


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the run folder, which is made if need be; entered again by the process that holds it, nothing happens.

    Raises:
        RunError: naming the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, is_singleton=True)
    if not take(lock, lambda: _held(folder)):
        yield
        return
    try:
        if lock.lock_counter == 1:
            since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(folder / OWNER, {"process": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        if lock.lock_counter == 1:
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def take(lock: FileLock, held: Callable[[], str]) -> bool:
    """Take a lock at once; False, with a warning, where the file system has none.

    Raises:
        RunError: with what `held` returns, when another process has it.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(held()) from None
    except NotImplementedError:
        place = Path(lock.lock_file).parent
        logger.warning("%s: this file system has no locks, so that nothing keeps a second command out", place)
        return False
    return True


def _held(folder: Path) -> str:
    try:
        owner = read_json(folder / OWNER)
        who = f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (DataError, KeyError, TypeError):  # it has just begun, or ends now
        who = "another process"
    return f"{folder}: {who} is at work on this run — wait until it has ended, or stop it"
