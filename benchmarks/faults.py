"""Faults injected into real runs: kills, full disks, flipped bytes, lost files, second owners, shortages.

    python benchmarks/faults.py --save             # every experiment that has no stored result of this commit
    python benchmarks/faults.py --only "kill"      # experiments whose name holds a word; --again: stored ones too
    python benchmarks/faults.py --quick            # a few of each, as CI does

Every experiment repeats the smallest whole job (docs/reliability.md) in forked children, injects one kind of fault at
random moments or places that follow from a seed, lets the same command run on, and compares what is left with an
undisturbed run: weights, replies, scores and losses bit for bit. A fault that was used in silence, a traceback, a hang
or another result counts as a failure, and the command ends with status 1. Results go to benchmarks/results/faults.json
experiment by experiment, so that an interrupted benchmark continues; docs/reliability.md is made from them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reliability import damage, imports, kills, shortage
from reliability.damage import PLACES
from reliability.forked import preload
from reliability.job import JOBS, more_data
from reliability.kills import Tally
from reliability.servers import SERVICES, kill_servers
from reliability.workspace import PLACE, copy_workspace, make_workspace

from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "faults.json"
ONE = JOBS["one process"]


@dataclass(frozen=True)
class Experiment:
    """A kind of fault and how often it is injected: `times` in full, `few` in a quick round."""

    name: str
    how: str  # for the table
    inject: Callable[[Path, Path, int], Tally]  # workspace, working folder, times
    times: int
    few: int = 0  # 0: not in a quick round
    mounts: bool = False  # whether it needs the right to mount a file system
    reads_saved: bool = False  # whether it needs merged models, stages and predictions


def experiments() -> list[Experiment]:
    """All of them, the quickest kinds first."""
    chains = [
        Experiment(f"SIGKILL: {job.name}", "at random moments, up to 4 in a row, then run to the end",
                   lambda w, f, n, job=job: kills.kill_chains(job, w, f, n), 20, 2 if job is ONE else 0)  # type: ignore[misc]
        for job in JOBS.values()
    ]  # fmt: skip
    chains += [
        Experiment(f"SIGKILL: {name}", "at random moments while clients send requests, up to 4 in a row, then again",
                   lambda w, f, n, service=service: kill_servers(service, w, f, n), 20)  # type: ignore[misc]
        for name, service in SERVICES.items()
    ]  # fmt: skip
    places = [
        experiment
        for place in PLACES
        for experiment in (
            Experiment(f"bytes flipped: {place.name}", "one bit in each region and each tensor of every file",
                       lambda w, f, n, place=place: damage.flip_bytes(w, f, place, n),
                       place.regions, int(place is PLACES[0]),
                       reads_saved=bool(place.also)),  # type: ignore[misc]
            Experiment(f"files lost: {place.name}", "every file once",
                       lambda w, f, n, place=place: damage.lose_files(w, f, place), 1, reads_saved=bool(place.also)),  # type: ignore[misc]
        )
    ]  # fmt: skip
    return [
        *chains,
        Experiment("SIGKILL: one worker process", "one of two processes that train together",
                   lambda w, f, n: kills.kill_workers(JOBS["CPU worker processes"], w, f, n), 10),
        Experiment("signals", "SIGINT, SIGTERM, SIGHUP, SIGSTOP with SIGCONT, then the same command again",
                   lambda w, f, n: kills.signals(ONE, w, f, n), 5),
        Experiment("Ctrl-C during imports", "SIGINT in the first seconds of every command, as a terminal sends it",
                   imports.interrupt_imports, 3),
        *places,
        Experiment("full disk", "the run folder on a tmpfs of 2 to 110 % of what it needs, then with room",
                   lambda w, f, n: shortage.full_disk(ONE, w, f, n), 10, 0, mounts=True),
        Experiment("full disk: other commands", "what each command writes on a tmpfs smaller than that, then with room",
                   shortage.full_disk_of_writers, 3, 0, mounts=True),
        Experiment("files that cannot grow", "RLIMIT_FSIZE of 100 to 200,000 bytes, then without",
                   lambda w, f, n: shortage.limited(ONE, w, f, shortage.file_size, n), 8),
        Experiment("read-only file system", "every command that writes",
                   lambda w, f, n: shortage.read_only(w, f), 1, 0, mounts=True),
        Experiment("short memory", "RLIMIT_AS of 0.25 to 512 MiB beyond the imports, then without",
                   lambda w, f, n: shortage.limited(ONE, w, f, shortage.memory, n), 8),
        Experiment("few handles", "RLIMIT_NOFILE of 4 to 39, then without",
                   lambda w, f, n: shortage.limited(ONE, w, f, shortage.handles, n), 8),
        Experiment("two owners", "a second `tailor run` or `tailor report` while the first is at work",
                   lambda w, f, n: shortage.two_owners(ONE, w, f, n), 9, 1),
        Experiment("jumping clock", "the time of day by up to ten years at every look, random times of files, a kill",
                   lambda w, f, n: shortage.jumping_clock(ONE, w, f, n), 5),
    ]  # fmt: skip


def workspace_of(experiment: Experiment, folder: Path) -> Path:
    """The workspace that an experiment copies; predictions have more to read."""
    if experiment.name != "SIGKILL: predict":
        return folder / "workspace"
    larger = folder / "larger"
    if not larger.exists():
        copy_workspace(folder / "workspace", larger, "d", "model", "runs")
        more_data(larger)
    return larger


def commit() -> str:
    """The commit of the working tree, short."""
    command = ["git", "describe", "--always", "--dirty"]
    stated = os.environ.get("FAULTS_COMMIT")  # of a copy of the repository without its history
    return stated or subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def run_experiment(experiment: Experiment, folder: Path, times: int) -> dict[str, Any]:
    """One row of the table."""
    began = time.monotonic()
    tally = experiment.inject(workspace_of(experiment, folder), folder, times)
    print(
        f"{experiment.name}: {tally.injected} injected, {tally.outcomes}, {time.monotonic() - began:.0f} s", flush=True
    )
    for failure in tally.failures:
        print(f"  FAILURE: {failure}", flush=True)
    return {"name": experiment.name, "how": experiment.how, **asdict(tally), "commit": commit(),
            "date": time.strftime("%Y-%m-%d"), "machine": describe_machine()}  # fmt: skip


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--times", type=int, default=10**6, help="at most so many of each (regions, of flipped bytes)")
    parser.add_argument("--again", action="store_true", help="repeat experiments of which a result is stored")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    stored = {row["name"]: row for row in read_json(RESULTS)["experiments"]} if RESULTS.exists() else {}
    wanted = experiments()
    if arguments.only:  # in the order asked for
        wanted = list({item.name: item for word in arguments.only for item in wanted if word in item.name}.values())
    if arguments.quick:
        wanted = [item for item in wanted if item.few]
    elif not arguments.again and not arguments.only:
        wanted = [item for item in wanted if stored.get(item.name, {}).get("commit") != commit()]
    preload()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        make_workspace(folder / PLACE)
        if any(item.reads_saved for item in wanted):
            damage.prepare_saved(folder / PLACE)
        (folder / PLACE).rename(folder / "workspace")
        for experiment in wanted:
            if experiment.mounts and not shortage.can_mount():
                print(f"{experiment.name}: left out, mounting is not allowed here")
                continue
            times = experiment.few if arguments.quick else min(experiment.times, arguments.times)
            row = run_experiment(experiment, folder, times)
            failed += len(row["failures"])
            if arguments.save:
                stored[row["name"]] = row
                names = [item.name for item in experiments()]
                rows = sorted(stored.values(), key=lambda row: names.index(row["name"]))
                write_json(RESULTS, {"experiments": rows})
    print(f"{failed} failures")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
