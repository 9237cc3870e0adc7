"""Commands that are killed or interrupted at random moments and started again, and what is left in the end."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reliability.forked import Child, Ended
from reliability.job import HANG, Job, cpu_seconds
from reliability.outcome import differences
from reliability.workspace import PLACE

CHAIN = 4  # kills of one run, before it is left to end
EXPECTED_OF_SIGNALS = {
    signal.SIGINT: (130, 2),  # the entry's message, or that of a training that was stopped between two steps
    signal.SIGTERM: (-signal.SIGTERM,),
    signal.SIGHUP: (-signal.SIGHUP,),
}


@dataclass
class Tally:
    """What was injected how often, and what came of it."""

    injected: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def count(self, word: str, number: int = 1) -> None:
        """One more of an outcome that is as it should be."""
        self.injected += number
        self.outcomes[word] = self.outcomes.get(word, 0) + number

    def fail(self, words: str, number: int = 1) -> None:
        """One more that is not."""
        self.injected += number
        self.failures.append(words)


@dataclass(frozen=True)
class Undisturbed:
    """A job that nothing disturbed: its CPU seconds and its outcome."""

    seconds: float
    outcome: dict[str, object]


def undisturbed(job: Job, workspace: Path, folder: Path) -> Undisturbed:
    """Run a job to its end.

    Raises:
        SystemExit: when it does not end well.
    """
    job.prepare(workspace, folder)
    child = job.start(folder)
    spent = 0.0
    with _polled(child) as polls:
        for used in polls:
            spent = max(spent, used)
    ended = child.wait(HANG)
    if ended.status != 0 or ended.orphans:
        raise SystemExit(f"{job.name}: the undisturbed run failed: {ended.output}")
    return Undisturbed(spent, job.outcome(folder))


class _polled:
    """CPU seconds of a child every hundredth of a second, until it has ended."""

    def __init__(self, child: Child) -> None:
        self.child = child

    def __enter__(self) -> Iterator[float]:
        return iter(self._poll, float("inf"))

    def _poll(self) -> float:
        time.sleep(0.01)
        return float("inf") if self.child.ended() else cpu_seconds(self.child)

    def __exit__(self, *_: object) -> None:
        return None


def interrupt_after(child: Child, seconds: float, act: Callable[[], object]) -> bool:
    """Call `act` once the child has used so many CPU seconds; False if it has ended before."""
    deadline = time.monotonic() + HANG
    with _polled(child) as polls:
        for used in polls:
            if used >= seconds or time.monotonic() > deadline:
                act()
                return True
    return False


def kill_chains(job: Job, workspace: Path, folder: Path, kills: int, seed: int = 0) -> Tally:
    """SIGKILL at `kills` random moments, several of each run; then it runs to its end and is compared."""
    chance, tally = random.Random(f"{job.name} {seed}"), Tally()
    whole = undisturbed(job, workspace, folder / PLACE)
    while tally.injected < kills:
        place = folder / PLACE
        job.prepare(workspace, place)
        count, orphans, attempts = 0, 0, 0
        while count < min(CHAIN, kills - tally.injected) and attempts < 4 * CHAIN:
            attempts += 1
            child = job.start(place)
            moment = chance.uniform(0.0, 1.0) * whole.seconds
            killed = interrupt_after(child, moment, lambda child=child: child.kill(signal.SIGKILL))  # type: ignore[misc]
            ended = child.wait(HANG)
            orphans += ended.orphans
            if killed and ended.status == -signal.SIGKILL:
                count += 1
            elif ended.status == 0:
                break  # it came to its end before the moment
            else:
                tally.fail(f"after {count} kills: status {ended.status}: {ended.error}", max(1, count))
                count = 0
                break
        if count:
            _compare(tally, job, place, whole, count, orphans)
    return tally


def _compare(tally: Tally, job: Job, place: Path, whole: Undisturbed, count: int, orphans: int) -> None:
    ended = job.run(place)
    different = differences(whole.outcome, job.outcome(place)) if ended.status == 0 else []
    if ended.status != 0:
        tally.fail(f"after {count} kills: status {ended.status}: {ended.error}", count)
    elif different:
        tally.fail(f"after {count} kills: not the same: {', '.join(different[:5])}", count)
    elif orphans:
        tally.fail(f"after {count} kills: {orphans} processes were left at work", count)
    else:
        tally.count("the same bits as undisturbed", count)


def kill_workers(job: Job, workspace: Path, folder: Path, kills: int, seed: int = 0) -> Tally:
    """SIGKILL of one worker process: the command ends in a message, and the next one in the same bits."""
    chance, tally = random.Random(f"workers {seed}"), Tally()
    whole = undisturbed(job, workspace, folder / PLACE)
    attempts = 0
    while tally.injected < kills and attempts < 5 * kills:
        attempts += 1
        place = folder / PLACE
        job.prepare(workspace, place)
        child = job.start(place)
        killed: list[bool] = []
        moment = chance.uniform(0.3, 1.0) * whole.seconds
        interrupt_after(child, moment, lambda child=child, killed=killed: killed.append(_kill_one(child)))  # type: ignore[misc]
        ended = child.wait(HANG)
        if not any(killed):
            continue
        if ended.crashed or ended.orphans or ended.status not in (0, 2):
            tally.fail(f"status {ended.status}, {ended.orphans} left at work: {ended.error}")
            continue
        _compare(tally, job, place, whole, 1, 0)
    return tally


def _kill_one(child: Child) -> bool:
    for process in child.workers():
        if "resource_tracker" not in " ".join(process.cmdline()):
            process.kill()
            return True
    return False


def signals(job: Job, workspace: Path, folder: Path, times: int, seed: int = 0) -> Tally:
    """SIGINT, SIGTERM, SIGHUP, and SIGSTOP followed by SIGCONT, each at random moments."""
    chance, tally = random.Random(f"signals {seed}"), Tally()
    whole = undisturbed(job, workspace, folder / PLACE)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGSTOP):
        for _ in range(times):
            place = folder / PLACE
            job.prepare(workspace, place)
            child = job.start(place)
            moment = chance.uniform(0.0, 0.95) * whole.seconds
            interrupt_after(child, moment, lambda child=child, number=number: _send(child, number))  # type: ignore[misc]
            ended = child.wait(HANG)
            if problem := _wrong_end(ended, number):
                tally.fail(f"{number.name}: {problem}")
            else:
                _compare(tally, job, place, whole, 1, ended.orphans)
    return tally


def _send(child: Child, number: signal.Signals) -> None:
    child.kill(number)
    if number is signal.SIGSTOP:
        time.sleep(0.5)
        child.kill(signal.SIGCONT)


def _wrong_end(ended: Ended, number: signal.Signals) -> str:
    expected = (0, *EXPECTED_OF_SIGNALS.get(number, ()))
    if ended.status in expected and not ended.timed_out and "Traceback" not in ended.output:
        return ""
    return f"status {ended.status}: {ended.error}"
