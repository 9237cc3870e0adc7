"""Ctrl-C in the first seconds of every command, in interpreters of their own: imports take most of that time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from reliability.forked import TRACEBACK
from reliability.kills import Tally
from reliability.workspace import PLACE, copy_workspace

INTERRUPTED = 130
FIRST, LAST = 0.1, 4.0  # CPU seconds; before the first, the interpreter itself starts and knows nothing of `tailor`
END = 60.0  # seconds in which an interrupted command must have ended
RUN = "runs/g"
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("init", "d", "--out", "new.yaml"),
    ("check", "r.yaml"),
    ("audit", "r.yaml"),
    ("run", "r.yaml", "name=new"),
    ("predict", RUN, "d/images", "--out", "o.jsonl"),
    ("report", RUN),
    ("score", "d", f"{RUN}/predictions.jsonl"),
    ("compare", RUN, RUN),
    ("compare-methods", "r.yaml"),
    ("curve", "r.yaml", "--at", "2,4"),
    ("sweep", "r.yaml"),
    ("demo", "--out", "demo"),
    ("draw", "receipts", "drawn"),
    ("merge", RUN, "merged"),
    ("truncate", RUN, "--rank", "1", "--out", "cut"),
    ("verify", RUN),
    ("serve", RUN, "--port", "0"),
    ("review", RUN, "d/images", "--port", "0"),
    ("label", "d/images", "--teacher", RUN),
    ("next", RUN, "d/images"),
    ("chat", RUN),
    ("convert", "model", "converted"),
    ("models",),
    ("methods",),
)


def interrupt_imports(workspace: Path, folder: Path, times: int) -> Tally:
    """SIGINT to the processes of each command, as a terminal sends it, `times` each."""
    chance, tally = random.Random("imports"), Tally()
    place = folder / PLACE
    shutil.rmtree(place, ignore_errors=True)
    copy_workspace(workspace, place, "d", "model", "runs", "r.yaml")
    for words in COMMANDS * times:
        moment = chance.uniform(FIRST, LAST)
        what = f"{' '.join(words)}, after {moment:.2f} s"
        with tempfile.TemporaryFile() as output:
            status, interrupted = _interrupt(words, place, moment, output.fileno())
            output.seek(0)
            text = output.read().decode(errors="replace")
        if TRACEBACK in text or "KeyboardInterrupt" in text:
            tally.fail(f"{what}: a traceback: {text[-200:]}")
        elif not interrupted:
            tally.count("the command had ended before")
        elif status != INTERRUPTED:
            tally.fail(f"{what}: status {status}: {text[-200:]}")
        else:
            tally.count("one line, status 130")
    return tally


def _interrupt(words: tuple[str, ...], place: Path, moment: float, output: int) -> tuple[int | None, bool]:
    """Exit status (None: it did not end), and whether the command was still at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mllm_tailor.cli.main", *words],
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # this process may run in the background
    )
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        times = watched.cpu_times()
        if times.user + times.system >= moment:
            break
        time.sleep(0.01)
    if process.poll() is not None:
        return process.returncode, False
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.wait(END), True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None, True
