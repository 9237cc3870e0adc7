"""Every peer, an earlier build and this one side by side, in interleaved rounds of one day: one table.

    python benchmarks/side_by_side.py f139a21
    python benchmarks/side_by_side.py f139a21 --parts training --works embedded --rounds 5
    python benchmarks/side_by_side.py f139a21 --quick              # two receipts, one round, a file of its own
    python benchmarks/side_by_side.py --markdown                   # the tables of the stored result

- `training`: `train.py`'s sides and the earlier build: published recipe, PEFT, TRL, LLaMA-Factory, ms-swift, ours.
- `prediction`: drawn receipts never met, read by a loop around transformers' `generate`, vLLM, the earlier build and
  ours, constrained and unconstrained; with 8 beams the two builds alone.
- `savings`: what each optimisation of ours saves, by leaving it out (`savings.py`, `savings_decoding.py`).

Seconds are CPU seconds of one thread. The result is written after every measurement, so the same command, called again
within a day, on the same builds and sizes, measures what is missing, sides that failed included. Beside the medians it
holds every round. bf16 is measured where the CPU has it in hardware. Results: benchmarks/results/side_by_side.json,
which `make docs` puts into docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import savings
import savings_decoding
import torch
from builds import ROOT, THIS_BUILD, Side, git, unpack
from predict_vllm import Mode, Reader
from predict_vllm import compare as compare_readers
from rates import matmul_rate
from rounds import Measurements
from train import FASTEST, PEERS, Trainer, WorkerArgs
from train import compare as compare_trainers

from mllm_tailor.core.device import describe_machine, fast_bf16
from mllm_tailor.core.io import read_json, write_json

sys.path.insert(0, str(ROOT / "tools" / "docs"))
from side_by_side_tables import tables

RESULTS = ROOT / "benchmarks" / "results" / "side_by_side.json"
QUICK_RESULTS = ROOT / ".benchmarks" / "side_by_side_quick.json"
DAY = timedelta(hours=24)
PARTS = ("training", "prediction", "savings")
TRAINERS = ("plain", "peft", "trl", "llamafactory", "ms-swift")
# Smaller than those of `train.py`, so that three rounds of seven sides take less than an hour of one core.
SIZES = {"embedded": WorkerArgs("embedded", 4, 4, 16), "150M": WorkerArgs("150M", 1, 1, 48)}
RECEIPTS = {1: 6, 8: 3}  # read in a round, by the number of beams
NO_BF16 = "bf16: not in this CPU's hardware, and emulated it is slower for everybody"
READERS = ("plain", "vllm", "base", "ours")
SIDES = tuple(dict.fromkeys((*TRAINERS, *READERS)))


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and of whom."""

    sides: tuple[str, ...]
    rounds: int
    works: tuple[WorkerArgs, ...]
    modes: tuple[Mode, ...]

    @classmethod
    def of(cls, sides: list[str], works: list[str], rounds: int, *, quick: bool) -> Sizes:
        """The usual sizes, or two receipts in one round of the embedded model."""
        dtypes = ("float32", "bfloat16") if fast_bf16(torch.device("cpu")) else ("float32",)
        receipts = {1: 2} if quick else RECEIPTS
        modes = [
            Mode(dtype, constrained, count, beams)
            for dtype in dtypes
            for beams, count in receipts.items()
            for constrained in ((True, False) if beams == 1 else (True,))
        ]
        chosen = [WorkerArgs("embedded", 2, 2, 16)] if quick else [SIZES[name] for name in works]
        return cls(tuple(sides), 1 if quick else rounds, tuple(chosen), tuple(modes))


@dataclass
class Record:
    """The result, written after every measurement."""

    path: Path
    document: dict[str, Any]

    @classmethod
    def open(cls, path: Path, builds: dict[str, str], now: datetime) -> Record:
        """The stored result where it can be continued, else a new one."""
        if path.exists() and may_continue(stored := read_json(path), builds, now):
            return cls(path, stored)
        return cls(path, {**builds, "begun": now.isoformat(timespec="minutes"), "machine": describe_machine(),
                          "gflops": matmul_rate(FASTEST == "bfloat16") / 1e9, "precision": FASTEST,
                          "left_out": [] if fast_bf16(torch.device("cpu")) else [NO_BF16]})  # fmt: skip

    def save(self) -> None:
        """Write it, and until when it is measured."""
        self.document["ended"] = datetime.now(UTC).isoformat(timespec="minutes")
        write_json(self.path, self.document)

    def group(self, part: str, name: str, facts: dict[str, Any], again: Iterable[str]) -> Measurements:
        """The measurements of one work or mode: those of the same size are kept; sides in `again` may fail anew."""
        groups = self.document.setdefault(part, {})
        if groups.get(name, {}).get("facts") != facts:
            groups[name] = {"facts": facts, "found": {}, "errors": {}}
        for key in again:
            groups[name]["errors"].pop(key, None)
        return Measurements(groups[name]["found"], groups[name]["errors"], self.save)


def may_continue(stored: dict[str, Any], builds: dict[str, str], now: datetime) -> bool:
    """Whether a stored result is of these builds, and not older than a day."""
    same = all(stored.get(name) == value for name, value in builds.items())
    return same and now - datetime.fromisoformat(stored["begun"]) < DAY


def describe_builds(commit: str) -> dict[str, str]:
    """Both builds: the earlier commit, ours, and the content of our sources, which alone decides."""
    changed = " and changes not committed" if git("status", "--porcelain", "--", "src") else ""
    return {
        "base": git("rev-parse", "--short", commit),
        "ours": git("rev-parse", "--short", "HEAD") + changed,
        "sources": git("rev-parse", "HEAD:src") + changed,
    }


def train_all(record: Record, sizes: Sizes, base: Side, limit: float) -> None:
    """Every trainer on every work."""
    earlier = Trainer(f"ours at {record.document['base']}", "ours", "ours", build=base)
    trainers = {**{key: PEERS[key] for key in TRAINERS}, "base": earlier, "ours": PEERS["ours"]}
    sides = {key: trainer for key, trainer in trainers.items() if key in sizes.sides}
    for work in sizes.works:
        measured = record.group("training", work.name, {"work": asdict(work), "steps": work.course.steps}, sides)
        with tempfile.TemporaryDirectory() as folder:
            compare_trainers(work, sides, sizes.rounds, limit, Path(folder), measured)


def read_all(record: Record, sizes: Sizes, base: Side, limit: float) -> None:
    """Every engine in every mode; the earlier build and ours in those with beams."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        builds = {"base": base}
        readers = {
            key: Reader("ours" if key == "base" else key, builds.get(key, THIS_BUILD), "embedded", stack, limit)
            for key in READERS
            if key in sizes.sides
        }
        for mode in sizes.modes:
            able = {key: one for key, one in readers.items() if mode.beams == 1 or key in ("base", "ours")}
            measured = record.group("prediction", mode.name, {"mode": asdict(mode)}, able)
            compare_readers(mode, able, sizes.rounds, Path(folder), measured)


def save_all(record: Record, sizes: Sizes) -> None:
    """What each optimisation saves, of a training step and of decoding, where it is not there yet."""
    stored = record.document.setdefault("savings", {})
    for name, measure in (("training", savings.measure), ("decoding", savings_decoding.measure)):
        if len(stored.get(name, {}).get("rows", ())) == 0 or stored[name]["rounds"] != sizes.rounds:
            stored[name] = {"rounds": sizes.rounds, "rows": measure(sizes.rounds)}
            record.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", help="the earlier build")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--works", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two receipts, one round, the embedded model alone")
    parser.add_argument("--limit", type=float, default=1800, help="seconds by the clock of one training or one answer")
    parser.add_argument("--out", type=Path, help="the result; what is there is continued")
    parser.add_argument("--markdown", action="store_true", help="measure nothing, print the stored result's tables")
    arguments = parser.parse_args()
    out = arguments.out or (QUICK_RESULTS if arguments.quick else RESULTS)
    if arguments.markdown:
        print(tables(read_json(out)))
        return
    if arguments.commit is None:
        parser.error("name the commit of the earlier build")
    torch.set_num_threads(1)
    record = Record.open(out, describe_builds(arguments.commit), datetime.now(UTC))
    sizes = Sizes.of(arguments.sides, arguments.works, arguments.rounds, quick=arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        base = unpack(arguments.commit, Path(folder))
        if "training" in arguments.parts:
            train_all(record, sizes, base, arguments.limit)
        if "prediction" in arguments.parts:
            read_all(record, sizes, base, arguments.limit)
    if "savings" in arguments.parts:
        save_all(record, sizes)
    print(tables(record.document))


if __name__ == "__main__":
    main()
