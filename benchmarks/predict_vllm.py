"""Receipts per second of `tailor predict` here and in vLLM: the same model, samples, ids, tiles and schema.

    python benchmarks/predict_vllm.py                    # the embedded model, in float32 and in bf16
    python benchmarks/predict_vllm.py --samples 8 --rounds 3

Each engine reads in a process and its own environment (benchmarks/environments.py), on one thread, drawn receipts
it has not met: first a few to warm up, then one set a round, in turns with the others. Seconds are CPU seconds, so that
other work on the machine does not decide; wall seconds, and seconds of opening, which is left out, stand beside them.
Results go to benchmarks/results/predict_vllm.json; the command fails when a ratio fell by more than 10 % under the one
stored there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builds import THIS_BUILD, Side
from readers import Ask, draw_receipts, reading_process
from rich.console import Console
from rich.table import Table
from rounds import Measurements

from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import write_json

RESULTS = Path(__file__).resolve().parent / "results" / "predict_vllm.json"
WARM_UP = 2  # receipts
SEED = 20_000


@dataclass(frozen=True)
class Mode:
    """How receipts are read, and how many a round."""

    dtype: str
    constrained: bool
    samples: int
    beams: int = 1
    max_new_tokens: int = 200

    @property
    def name(self) -> str:
        """In words."""
        kind = "constrained" if self.constrained else "unconstrained"
        return f"{self.dtype}, {kind}" + (f", {self.beams} beams" if self.beams > 1 else "")


@dataclass
class Reader:
    """One engine of one build; its process begins with the first question and lasts until `stack` ends."""

    engine: str
    build: Side
    model: str
    stack: ExitStack
    limit: float = 600  # seconds by the clock until an answer
    asks: dict[str, Ask] = field(default_factory=dict)  # by dtype
    warm: set[Mode] = field(default_factory=set)
    facts: dict[str, Any] = field(default_factory=dict)  # versions, and seconds until the model is open
    failed: dict[str, str] = field(default_factory=dict)  # by dtype

    def read(self, mode: Mode, warm_up: list[str], files: list[str]) -> dict[str, Any]:
        """Seconds, memory and replies of files that this process has not met.

        Raises:
            RuntimeError: with the last words of a process that ended, now or at an earlier question.
        """
        if mode.dtype in self.failed:
            raise RuntimeError(self.failed[mode.dtype])
        try:
            if mode.dtype not in self.asks:
                process = reading_process(
                    self.build, engine=self.engine, dtype=mode.dtype, model=self.model, limit=self.limit
                )
                self.asks[mode.dtype] = self.stack.enter_context(process)
            ask = self.asks[mode.dtype]
            told = {"beams": mode.beams, "constrained": mode.constrained, "max_new_tokens": mode.max_new_tokens}
            if mode not in self.warm:
                answer = ask(told | {"files": warm_up})
                self.facts |= {name: answer[name] for name in ("opening", "versions") if name in answer}
                self.warm.add(mode)
            return ask(told | {"files": files}) | self.facts
        except RuntimeError as error:
            self.failed[mode.dtype] = str(error)
            raise


def shorten(text: str) -> str:
    """A short hash: whether two replies are equal is all that is asked of a stored result."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compare(
    mode: Mode, readers: Mapping[str, Reader], rounds: int, folder: Path, measured: Measurements | None = None
) -> Measurements:
    """The engines in turns on the same receipts, of which none has been met."""
    measured = measured or Measurements()
    receipts = folder / mode.name.replace(", ", "-").replace(" ", "-")
    receipts.mkdir()
    seed = SEED + (0 if mode.constrained else 1000) + 100 * mode.beams  # no file of another mode
    files = draw_receipts(receipts, seed, WARM_UP + mode.samples * rounds)

    def read(reader: Reader) -> Callable[[int], dict[str, Any]]:
        def of_round(number: int) -> dict[str, Any]:
            start = WARM_UP + number * mode.samples
            answer = reader.read(mode, files[:WARM_UP], files[start : start + mode.samples])
            return {name: value for name, value in answer.items() if name != "texts"} | {
                "replies": [shorten(text) for text in answer["texts"]]
            }

        return of_round

    measured.interleave({key: read(reader) for key, reader in readers.items()}, rounds, f"prediction {mode.name}")
    return measured


def row_of(mode: Mode, found: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One row: receipts a CPU second of ours and vLLM, by the medians, and how many replies are the same."""
    rates = {key: mode.samples / statistics.median(one["cpu"] for one in rounds) for key, rounds in found.items()}
    replies = {key: [reply for one in rounds for reply in one["replies"]] for key, rounds in found.items()}
    return {
        "dtype": mode.dtype,
        "held": mode.constrained,
        "samples_per_cpu_second": rates,
        "ratio": rates["ours"] / rates["vllm"],
        "same_replies": sum(one == other for one, other in zip(replies["ours"], replies["vllm"], strict=True)),
        "replies": len(replies["ours"]),
        **found,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(
        "numbers", "replies", "ours, a CPU second", "vLLM", "ours to vLLM", "wall s (ours, vLLM)", "same replies"
    )
    for row in rows:
        rates = row["samples_per_cpu_second"]
        wall = [statistics.median(one["wall"] for one in row[engine]) for engine in ("ours", "vllm")]
        table.add_row(
            row["dtype"],
            "constrained" if row["held"] else "unconstrained",
            *(f"{rates[engine]:.2f}" for engine in ("ours", "vllm")),
            f"{row['ratio']:.2f}",
            f"{wall[0]:.1f}, {wall[1]:.1f}",
            f"{row['same_replies']}/{row['replies']}",
        )
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="`embedded`, or a folder of an InternVL")
    parser.add_argument("--samples", type=int, default=8, help="receipts a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--save", action="store_true", help="store these ratios as the ones to hold")
    arguments = parser.parse_args()
    rows = []
    for dtype in arguments.dtypes:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            readers = {engine: Reader(engine, THIS_BUILD, arguments.model, stack) for engine in ("ours", "vllm")}
            for constrained in (True, False):
                mode = Mode(dtype, constrained, arguments.samples, max_new_tokens=arguments.max_new_tokens)
                measured = compare(mode, readers, arguments.rounds, Path(folder))
                if measured.errors:
                    sys.exit("\n".join(measured.errors.values()))
                rows.append(row_of(mode, measured.found))
    show(rows)
    stored = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    before = {(row["dtype"], row["held"]): row["ratio"] for row in stored}
    if arguments.save or not stored:
        write_json(RESULTS, {"machine": describe_machine(), "arguments": vars(arguments), "rows": rows})
    fallen = [row for row in rows if row["ratio"] < 0.9 * before.get((row["dtype"], row["held"]), 0)]
    if fallen and not arguments.save:
        sys.exit(
            "more than 10 % under the stored ratio: " + "; ".join(f"{row['dtype']}, {row['held']}" for row in fallen)
        )


if __name__ == "__main__":
    main()
