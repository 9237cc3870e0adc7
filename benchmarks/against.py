"""This build against an earlier one of its own: the same work in turns, in CPU seconds of one thread.

    python benchmarks/against.py f139a21                          # every part, three rounds
    python benchmarks/against.py f139a21 --only predict --rounds 5

The other commit is unpacked into a temporary folder and runs in the same environment, so a ratio is the difference of
the code alone. Rounds are interleaved (base, ours, base, ours), so other work on the machine slows both sides. Parts:

- `predict`, `beams`: constrained replies to drawn receipts never met, with 1 beam and with 8, after a warm-up; float32.
- `train`, `train-150M`: `benchmarks/train.py`'s work for "ours", without the peers.
- `memory`: the most memory that three steps of `recipes/sroie.yaml` take, on drawn receipts in one process.
- `answer`, `check`: from the shell to the first prediction of one receipt, and `tailor check`; the embedded model.
- `imports`: `--help`, and the import of what each command runs, as the command line imports it.

Names that changed between the commits stand in `RENAMED` and in `reading_worker.py`. Results go to
benchmarks/results/against.json: a part that was not run keeps its last figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builds import ROOT, THIS_BUILD, Side, compile_modules, git, unpack
from readers import draw_receipts, reading_process
from rich.console import Console
from rich.table import Table
from train import FASTEST, QUICK, WORKS, WorkerArgs, prepare

from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import read_json, write_json
from mllm_tailor.synthetic import draw_folder

RESULTS = ROOT / "benchmarks" / "results" / "against.json"
RECEIPTS = {1: 6, 8: 3}  # read in a round, by the number of beams
WARM_UP = 2
SEED = 31_000  # of the drawn receipts
# What is imported when a command does its work: now, and where it was on 29 November 2026.
RENAMED = {
    "predict": ("commands.predict", "run.reading"),
    "check": ("commands.check", "run.check"),
    "run": ("commands.run", "run.tailor"),
    "compare": ("commands.compare", "run.compare"),
    "init": ("commands.init", "run.init"),
    "methods": ("commands.list", "run.listing"),
}
# As the entry of the command line imports it, and ends.
IMPORT = {
    "base": "import mllm_tailor.cli.main, mllm_tailor.{}",
    "ours": (
        "import gc; from mllm_tailor.cli.main import prepare_imports; prepare_imports();"
        "import mllm_tailor.cli.app, mllm_tailor.{}; gc.freeze()"
    ),
}
RECIPE = """
name: against
model: embedded
data: {train: FOLDER, held_out: {column: split, value: dev}}
task:
  extract: {company: string, date: date, address: string, total: amount}
predict: {max_new_tokens: 120}
"""
FEW_STEPS = ("data.held_out.group_by=null", "data.dev=0", "train.steps=3", "train.processes=1", "train.augment=true",
             "data.limit_held_out=1", "predict.max_new_tokens=40")  # fmt: skip


@dataclass
class Row:
    """One thing that both sides did, and what it took them in each round."""

    part: str
    name: str
    unit: str
    larger_is_better: bool
    values: dict[str, list[float]] = field(default_factory=lambda: {"base": [], "ours": []})
    same: str = ""  # how many replies or losses are the same

    @property
    def ratio(self) -> float:
        """How many times as good as the base: by the medians."""
        base, ours = (statistics.median(self.values[name]) for name in ("base", "ours"))
        return ours / base if self.larger_is_better else base / ours

    def row(self) -> dict[str, Any]:
        """For the JSON file."""
        figures = {
            name: {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": values}
            for name, values in self.values.items()
        }
        return {"part": self.part, "name": self.name, "unit": self.unit, **figures, "ratio": self.ratio,
                "same": self.same}  # fmt: skip


def call(side: Side, words: Sequence[str], *, allowed: tuple[int, ...] = (0,)) -> tuple[float, int]:
    """CPU seconds and peak memory in bytes of a command and its children.

    Raises:
        RuntimeError: with the end of its output, when it failed.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(words, env=side.environment, cwd=side.folder, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in allowed:
            output.seek(0)
            raise RuntimeError(f"{side.name}: {' '.join(words)}\n{output.read().decode()[-3000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def measure(row: Row, sides: Sequence[Side], rounds: int, work: Callable[[Side, int], float]) -> Row:
    """The same work of both sides in turns."""
    for number in range(rounds):
        for side in sides:
            row.values[side.name].append(work(side, number))
            print(f"{row.name}, round {number + 1}, {side.name}: {row.values[side.name][-1]:.3f} {row.unit}",
                  file=sys.stderr, flush=True)  # fmt: skip
    return row


def predictions(sides: Sequence[Side], rounds: int, folder: Path, beams: int) -> list[Row]:
    """Receipts a CPU second, each receipt read once by each side."""
    part, count = "predict" if beams == 1 else "beams", RECEIPTS[beams]
    files = draw_receipts(folder, SEED, WARM_UP + count * rounds)
    texts: dict[str, list[str]] = {side.name: [] for side in sides}
    row = Row(part, f"constrained, beams: {beams}", "receipts a CPU second", larger_is_better=True)
    with reading_process(sides[0]) as first, reading_process(sides[1]) as second:
        ask = {sides[0].name: first, sides[1].name: second}
        for process in ask.values():
            process({"beams": beams, "files": files[:WARM_UP]})

        def work(side: Side, number: int) -> float:
            start = WARM_UP + number * count
            answer = ask[side.name]({"beams": beams, "files": files[start : start + count]})
            texts[side.name] += answer["texts"]
            return float(count / answer["cpu"])

        measure(row, sides, rounds, work)
    same = sum(mine == theirs for mine, theirs in zip(*texts.values(), strict=True))
    row.same = f"{same} of {count * rounds} replies"
    return [row]


def trainings(sides: Sequence[Side], rounds: int, folder: Path, work: WorkerArgs) -> list[Row]:
    """Samples a CPU second inside training, and the peak of memory there."""
    job = prepare(work, folder)
    part = "train" if work.name == "embedded" else f"train-{work.name}"
    rate = Row(part, f"training, {work.name}", "samples a CPU second", larger_is_better=True)
    memory = Row(part, f"peak memory of training, {work.name}", "MiB", larger_is_better=False)
    losses: dict[str, list[float]] = {}

    def train(side: Side, number: int) -> float:
        own = folder / f"{side.name}-{number}"
        result = own / "result.json"
        own.mkdir()
        told = {"result": str(result), "scratch": str(own / "scratch"), "precision": FASTEST, "seen": False}
        (own / "job.json").write_text(json.dumps(job | told))
        script = side.folder / "benchmarks" / "trainers" / "ours.py"
        call(side, [sys.executable, str(script), str(own / "job.json")])
        measured = read_json(result)
        memory.values[side.name].append(measured["peak_memory"] / 2**20)
        losses[side.name] = measured["losses"]
        return float(job["steps"] * work.batch / measured["cpu_seconds"])

    measure(rate, sides, rounds, train)
    furthest = max(abs(mine - theirs) for mine, theirs in zip(*losses.values(), strict=True))
    rate.same = f"losses of {len(losses['ours'])} steps differ by {furthest:.0e} at most"
    return [rate, memory]


def recipe_memory(sides: Sequence[Side], rounds: int, folder: Path) -> list[Row]:
    """The peak of three steps of the receipt recipe."""
    draw_folder(folder / "receipts", 16, 2, seed=1)

    def run(side: Side, number: int) -> float:
        recipe = side.folder / "recipes" / "sroie.yaml"
        changed = (f"data.train={folder / 'receipts'}", f"output={folder / f'{side.name}-{number}'}", *FEW_STEPS)
        return call(side, side.tailor("run", recipe, *changed))[1] / 2**20

    row = Row("memory", "recipes/sroie.yaml, three steps", "MiB", larger_is_better=False)
    return [measure(row, sides, rounds, run)]


def seconds_of(name: str, words: Callable[[Side], list[str]], sides: Sequence[Side], rounds: int) -> Row:
    """CPU seconds of a command; `tailor check` may find something."""
    row = Row(name.split(":")[0], name, "CPU seconds", larger_is_better=False)
    return measure(row, sides, rounds, lambda side, _: call(side, words(side), allowed=(0, 1))[0])


def first_answer(sides: Sequence[Side], rounds: int, folder: Path) -> list[Row]:
    """From the shell to the prediction of one receipt by the embedded model."""
    recipe, image = small_job(folder)
    words = ("predict", image, "--model", "embedded", "--recipe", recipe, "--out", folder / "predictions.jsonl")
    for side in sides:
        call(side, side.tailor(*words))  # files met once: no side finds them cold
    return [seconds_of("answer: from the shell", lambda side: side.tailor(*words), sides, rounds)]


def checking(sides: Sequence[Side], rounds: int, folder: Path) -> list[Row]:
    """`tailor check` of a recipe for the embedded model."""
    recipe, _ = small_job(folder)
    return [seconds_of("check: tailor check", lambda side: side.tailor("check", recipe), sides, rounds)]


def small_job(folder: Path) -> tuple[Path, Path]:
    """A recipe over twelve drawn receipts, and one of them."""
    draw_folder(folder / "receipts", 12, 2, seed=2)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("FOLDER", str(folder / "receipts")))
    return recipe, next((folder / "receipts").rglob("*.jpg"))


def importing(sides: Sequence[Side], rounds: int, _: Path) -> list[Row]:
    """What each command imports when it does its work, and `tailor --help`."""

    def imports(modules: tuple[str, str]) -> Callable[[Side], list[str]]:
        return lambda side: [sys.executable, "-c", IMPORT[side.name].format(modules[side.name == "base"])]

    return [
        seconds_of("imports: tailor --help", lambda side: side.tailor("--help"), sides, rounds),
        *(seconds_of(f"imports: tailor {name}", imports(both), sides, rounds) for name, both in RENAMED.items()),
    ]


PARTS: dict[str, Callable[[Sequence[Side], int, Path], list[Row]]] = {
    "answer": first_answer,
    "check": checking,
    "imports": importing,
    "predict": lambda sides, rounds, folder: predictions(sides, rounds, folder, 1),
    "beams": lambda sides, rounds, folder: predictions(sides, rounds, folder, 8),
    "train": lambda sides, rounds, folder: trainings(sides, rounds, folder, QUICK),
    "train-150M": lambda sides, rounds, folder: trainings(sides, rounds, folder, WORKS["150M"]),
    "memory": recipe_memory,
}


def show(rows: Sequence[Row], commit: str) -> None:
    """The table."""
    table = Table("part", "what", "unit", commit, "ours", "spread (base, ours)", "times as good", "equal")
    for row in rows:
        medians = (f"{statistics.median(values):.3f}" for values in row.values.values())
        spread = ", ".join(f"{min(values):.3f}–{max(values):.3f}" for values in row.values.values())
        table.add_row(row.part, row.name, row.unit, *medians, spread, f"{row.ratio:.2f}", row.same)
    Console(width=180).print(table)


def store(rows: Sequence[Row], commit: str, rounds: int) -> None:
    """Replace the figures of the parts that were run."""
    stored = read_json(RESULTS) if RESULTS.exists() else {}
    kept = stored.get("rows", []) if stored.get("base") == commit else []
    run = {row.part for row in rows}
    measured = [row.row() | {"ours_at": git("rev-parse", "--short", "HEAD"), "count": rounds} for row in rows]
    write_json(
        RESULTS,
        {
            "base": commit,
            "machine": describe_machine(),
            "rows": [row for row in kept if row["part"] not in run] + measured,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results/against.json as it is")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        sides = [unpack(arguments.commit, Path(scratch) / "base"), THIS_BUILD]
        compile_modules(sides[1])
        for part in arguments.only:
            folder = Path(scratch) / part
            folder.mkdir()
            rows += PARTS[part](sides, arguments.rounds, folder)
            if not arguments.no_save:  # after each part: a run that is broken off keeps what it has measured
                store(rows, arguments.commit, arguments.rounds)
    show(rows, arguments.commit)


if __name__ == "__main__":
    main()
