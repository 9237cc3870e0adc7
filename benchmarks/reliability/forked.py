"""Commands of `tailor` in forked children with limits: what `tailor` itself does, without ten seconds of imports each.

The parent imports everything once and computes nothing, so that no thread of torch exists when it forks.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOMS = (
    "cli",
    "commands",
    "run",
    "data",
    "media",
    "tasks",
    "scoring",
    "reporting",
    "methods",
    "training",
    "generation",
    "serving",
    "review",
)
OPTIONAL = ("__main__", "vllm_model", "decode_worker")  # other packages, or programs
TRACEBACK = "Traceback (most recent call last)"
CRASHED = 70  # exit status of a child whose command raised something that is no message
GRACE = 10.0  # seconds in which processes that a killed command left behind must have ended


@dataclass(frozen=True)
class Limits:
    """What a child may use; None: as much as the parent."""

    seconds: float = 1800.0  # generous: the machine may have other work
    memory: int | None = None  # bytes of address space beyond what the parent has
    file_bytes: int | None = None  # of one written file
    handles: int | None = None  # open files


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: the signal that killed it) and what it printed."""

    status: int
    output: str
    seconds: float
    timed_out: bool = False
    orphans: int = 0  # processes that it left at work

    @property
    def crashed(self) -> bool:
        """Whether it ended in a traceback, by a signal that nobody sent, or not at all."""
        return self.timed_out or self.status < 0 or self.status == CRASHED or TRACEBACK in self.output

    @property
    def last_line(self) -> str:
        """The end of what it printed."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    @property
    def error(self) -> str:
        """The message it ended with, from the word `Error:` on; else its last line."""
        at = self.output.rfind("Error: ")
        return re.sub(r"\s+", " ", self.output[at:])[:300] if at >= 0 else self.last_line


def preload(rooms: Sequence[str] = ROOMS) -> None:
    """Import what every command needs, once; `rooms` are enough where commands open no model."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from mllm_tailor.cli.main import prepare_process

    prepare_process()
    for room in rooms:  # what commands import when they need it would be imported by every child
        package = importlib.import_module(f"mllm_tailor.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(OPTIONAL):
                importlib.import_module(module.name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@dataclass
class Child:
    """A command at work in a process group of its own."""

    process: int
    output: Path
    began: float = field(default_factory=time.monotonic)
    status: int | None = None  # as waitpid gives it, once it has ended

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            self.status = status if process else None
        return self.status is not None

    def wait(self, seconds: float) -> Ended:
        """Wait at most `seconds`, then kill the whole group."""
        deadline, timed_out = self.began + seconds, False
        while not self.ended():
            if time.monotonic() > deadline:
                timed_out = True
                self.kill(signal.SIGKILL, group=True)
            time.sleep(0.005)
        assert self.status is not None, "it has ended"
        orphans = self._orphans()
        text = self.output.read_text(encoding="utf-8", errors="replace")
        self.output.unlink()
        return Ended(os.waitstatus_to_exitcode(self.status), text, time.monotonic() - self.began, timed_out, orphans)

    def kill(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the command, or to all its processes; one that has ended is left alone."""
        if self.status is not None and not group:
            return
        try:
            (os.killpg if group else os.kill)(self.process, number)
        except ProcessLookupError:
            return

    def workers(self) -> list[psutil.Process]:
        """The processes that the command has started and that are at work."""
        try:
            return psutil.Process(self.process).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _orphans(self) -> int:
        """Processes of the group that have not ended by themselves in time; they are killed."""
        deadline = time.monotonic() + GRACE
        while (left := _living(self.process)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            self.kill(signal.SIGKILL, group=True)
        return len(left)


def _living(group: int) -> list[int]:
    living: list[int] = []
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return living
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.info["pid"]) == group:
                living.append(process.info["pid"])
        except ProcessLookupError:
            continue
    return living


def start(
    work: Sequence[str] | Callable[[], object],
    folder: Path,
    *,
    limits: Limits = Limits(),
    before: Callable[[], object] | None = None,
) -> Child:
    """Fork a command of `tailor`, given by its arguments, or a function in `folder`; `before` is called there first."""
    handle, name = tempfile.mkstemp(prefix="forked-", suffix=".log")
    process = os.fork()
    if process:
        os.close(handle)
        with suppress(OSError):  # the child does the same; whoever comes first
            os.setpgid(process, process)
        return Child(process, Path(name))
    status = CRASHED
    try:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(handle, stream)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _limit(limits)
        if before is not None:
            before()
        status = _call(work) if callable(work) else _command(work)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def run(
    work: Sequence[str] | Callable[[], object],
    folder: Path,
    *,
    limits: Limits = Limits(),
    before: Callable[[], object] | None = None,
) -> Ended:
    """`start` and wait for the end."""
    return start(work, folder, limits=limits, before=before).wait(limits.seconds)


def _call(function: Callable[[], object]) -> int:
    function()
    return 0


def _command(arguments: Sequence[str]) -> int:
    from mllm_tailor.cli.main import main

    sys.argv = ["tailor", *arguments]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _limit(limits: Limits) -> None:
    if limits.memory is not None:
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory,) * 2)
    if limits.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes,) * 2)
    if limits.handles is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits.handles,) * 2)
