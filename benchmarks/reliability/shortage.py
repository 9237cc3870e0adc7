"""A machine that has too little, or that others use: disk, memory, handles, a clock that jumps, a second owner."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from reliability.forked import Child, Ended, Limits, run, start
from reliability.job import HANG, Job
from reliability.kills import Tally, interrupt_after, undisturbed
from reliability.outcome import differences, outcome
from reliability.workspace import PLACE, copy_workspace

DAY = 86_400.0


def _finish(tally: Tally, job: Job, place: Path, whole: dict[str, object], word: str) -> None:
    """Run on without the shortage and compare."""
    ended = job.run(place)
    if ended.status != 0:
        tally.fail(f"{word}, then status {ended.status}: {ended.error}")
    elif different := differences(whole, job.outcome(place)):
        tally.fail(f"{word}, then not the same: {', '.join(different[:5])}")
    else:
        tally.count(f"{word}, then the same bits")


def _judge(tally: Tally, ended: Ended, what: str) -> str:
    """The word for how a command under a shortage ended; nothing where it was no message."""
    if ended.crashed:
        tally.fail(f"{what}: {'no end' if ended.timed_out else f'status {ended.status}'}: {ended.last_line}")
        return ""
    return "no harm" if ended.status == 0 else "a message"


def limited(job: Job, workspace: Path, folder: Path, limits: Callable[[random.Random], Limits], times: int) -> Tally:
    """The job under random limits, then without."""
    chance, tally = random.Random(f"{job.name} {times}"), Tally()
    whole = undisturbed(job, workspace, folder / PLACE).outcome
    for _ in range(times):
        place, chosen = folder / PLACE, limits(chance)
        job.prepare(workspace, place)
        ended = run(job.words, place, limits=chosen, before=job.before)
        if word := _judge(tally, ended, str(chosen)):
            _finish(tally, job, place, whole, word)
    return tally


def file_size(chance: random.Random) -> Limits:
    """No file may grow beyond so many bytes: writes fail as on a disk with a quota, though by another error."""
    return Limits(seconds=HANG, file_bytes=int(10 ** chance.uniform(2, 5.3)))


def memory(chance: random.Random) -> Limits:
    """So many bytes of address space beyond the imports."""
    return Limits(seconds=HANG, memory=int(2 ** chance.uniform(18, 29)))


def handles(chance: random.Random) -> Limits:
    """So many open files."""
    return Limits(seconds=HANG, handles=chance.randrange(4, 40))


def can_mount() -> bool:
    """Whether this user may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def full_disk(job: Job, workspace: Path, folder: Path, times: int) -> Tally:
    """The run folder lies on a file system of a random size; then it gets room."""
    chance, tally = random.Random(f"disk {times}"), Tally()
    whole = undisturbed(job, workspace, folder / PLACE).outcome
    needed = sum(file.stat().st_size for file in (folder / PLACE / "runs").rglob("*") if file.is_file())
    for _ in range(times):
        place = folder / PLACE
        job.prepare(workspace, place)
        size = int(needed * chance.uniform(0.02, 1.1)) // 4096 * 4096 + 4096
        (place / "runs").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place / "runs")], check=True)
        try:
            word = _judge(tally, job.run(place), f"a disk of {size:,} bytes")
            if word:
                subprocess.run(["mount", "-o", "remount,size=200m", str(place / "runs")], check=True)
                _finish(tally, job, place, whole, word)
        finally:
            subprocess.run(["umount", str(place / "runs")], check=True)
    return tally


SMALL = "small"  # a folder on a small file system
WRITERS: tuple[tuple[str, ...], ...] = (
    ("init", "d", "--out", f"{SMALL}/r.yaml", "--force"),
    ("draw", "receipts", f"{SMALL}/d", "--train", "2", "--held-out", "1"),
    ("predict", "runs/g", "d/images", "--out", f"{SMALL}/o.jsonl"),
    ("merge", "runs/g", f"{SMALL}/m", "--samples", "0"),
    ("merge", "runs/g", f"{SMALL}/a", "--adapter"),
    ("audit", "r.yaml", f"output={SMALL}", "--readings", "runs/g"),
    ("label", "d/images", "--teacher", "runs/g", "--out", f"{SMALL}/l"),
    ("next", "runs/g", "d/images", "--out", f"{SMALL}/n.jsonl"),
    ("review", "runs/g", "d/images", "--db", f"{SMALL}/c.db", "--export", f"{SMALL}/e.jsonl"),
)


def full_disk_of_writers(workspace: Path, folder: Path, times: int) -> Tally:
    """Every command that writes, `times` each, on a file system of a random size; then it gets room."""
    chance, tally, place = random.Random(f"writers {times}"), Tally(), folder / PLACE
    small = place / SMALL

    def prepare() -> None:
        shutil.rmtree(place, ignore_errors=True)
        copy_workspace(workspace, place, "d", "model", "runs", "r.yaml")
        small.mkdir()

    for words in WRITERS:
        prepare()
        ended = run(words, place)
        if ended.status:
            raise SystemExit(f"{' '.join(words)}: {ended.output}")
        whole = _written(small)
        needed = sum(file.stat().st_size for file in small.rglob("*") if file.is_file())
        for _ in range(times):
            prepare()
            size = int(needed * chance.uniform(0.0, 1.0)) // 4096 * 4096 + 4096
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=True)
            try:
                what = f"{' '.join(words)}, {size:,} bytes"
                if (word := _judge(tally, run(words, place), what)) == "no harm":
                    tally.count(word)
                elif word:
                    subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
                    _again(tally, words, place, whole, f"{what}: {word}")
            finally:
                subprocess.run(["umount", str(small)], check=True)
    return tally


def _written(small: Path) -> dict[str, object]:
    """What a command wrote; the others hold times."""
    left_out = (".db", ".html", ".sums", "teacher.json")
    return {name: value for name, value in outcome(small).items() if not name.endswith(left_out)}


def _again(tally: Tally, words: tuple[str, ...], place: Path, whole: dict[str, object], what: str) -> None:
    ended = run(words, place)
    if ended.status != 0:
        tally.fail(f"{what}, then status {ended.status}: {ended.error}")
    elif different := differences(whole, _written(place / SMALL)):
        tally.fail(f"{what}, then not the same: {', '.join(different[:5])}")
    else:
        tally.count(f"{what.rpartition(': ')[2]}, then the same")


def read_only(workspace: Path, folder: Path) -> Tally:
    """Every command that writes, into a file system that cannot be written."""
    tally, place = Tally(), folder / PLACE
    shutil.rmtree(place, ignore_errors=True)
    copy_workspace(workspace, place, "d", "model", "runs", "r.yaml")
    runs = str(place / "runs")
    subprocess.run(["mount", "--bind", runs, runs], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", runs], check=True)
        for words in (
            ("report", "runs/g"), ("run", "r.yaml"), ("run", "r.yaml", "--fresh"), ("run", "r.yaml", "name=new"),
            ("init", "d", "--out", "runs/r.yaml"), ("merge", "runs/g", "runs/m", "--samples", "0"),
            ("predict", "runs/g", "d/images/0.png", "--out", "runs/o.jsonl"), ("audit", "r.yaml"),
            ("label", "d/images", "--teacher", "runs/g", "--out", "runs/l"), ("next", "runs/g", "d/images"),
            ("review", "runs/g", "d/images"), ("draw", "receipts", "runs/d"), ("serve", "runs/g", "--files", "runs/f"),
            ("curve", "r.yaml", "--at", "2,4"), ("sweep", "r.yaml", "data.dev=0.3"),
        ):  # fmt: skip
            ended = run(words, place)
            if (word := _judge(tally, ended, " ".join(words))) == "a message" and "runs" not in ended.output:
                tally.fail(f"{' '.join(words)}: the place is not named: {ended.error}")
            elif word:
                tally.count(word)
    finally:
        subprocess.run(["umount", runs], check=True)
    return tally


def two_owners(job: Job, workspace: Path, folder: Path, times: int) -> Tally:
    """The same command a second time while the first is at work."""
    chance, tally = random.Random(f"owners {times}"), Tally()
    whole = undisturbed(job, workspace, folder / PLACE)
    for number in range(times):
        place = folder / PLACE
        job.prepare(workspace, place)
        first, second = job.start(place), list[Child]()
        words = ("report", "runs/g") if number % 3 == 2 else job.words
        moment = chance.uniform(0.05, 0.95) * whole.seconds
        interrupt_after(first, moment, lambda: second.append(start(words, place)))  # noqa: B023
        ends = [child.wait(HANG) for child in (*second, first)]
        refused = any(f"process {first.process} on" in end.output for end in ends) or ends[0].status == 0
        if ends[-1].status != 0 or any(end.crashed for end in ends) or not second or not refused:
            tally.fail("; ".join(f"status {end.status}: {end.error}" for end in ends))
        elif different := differences(whole.outcome, job.outcome(place)):
            tally.fail(f"not the same: {', '.join(different)}")
        else:
            tally.count("the second was refused, naming the first; the first as undisturbed")
    return tally


def jumping_clock(job: Job, workspace: Path, folder: Path, times: int) -> Tally:
    """The time of day jumps by up to ten years, back and forth, in two halves of a run that is killed between them."""
    chance, tally = random.Random(f"clock {times}"), Tally()
    whole = undisturbed(job, workspace, folder / PLACE)
    for number in range(times):
        place = folder / PLACE
        job.prepare(workspace, place)
        child = start(job.words, place, before=lambda number=number: _jump(number))  # type: ignore[misc]
        moment = chance.uniform(0.2, 0.9) * whole.seconds
        interrupt_after(child, moment, lambda child=child: child.kill(signal.SIGKILL))  # type: ignore[misc]
        child.wait(HANG)
        for file in place.rglob("*"):
            if file.is_file() and "runs" in file.parts:
                date = chance.uniform(0, 2e9)
                os.utime(file, (date, date))
        ended = run(job.words, place, before=lambda number=number: _jump(-number - 1))  # type: ignore[misc]
        if word := _judge(tally, ended, "a jumping clock"):
            _finish(tally, job, place, whole.outcome, word)
    return tally


def _jump(seed: int) -> None:
    import time

    chance, real = random.Random(seed), time.time
    time.time = lambda: max(0.0, real() + chance.uniform(-3650, 3650) * DAY)
