"""What the task's metric as a reward, or preferences, add to tuning on real receipts, at equal CPU minutes. Resumable.

    python benchmarks/rewards_receipts.py FOLDER                                 # the folder of SROIE
    python benchmarks/rewards_receipts.py FOLDER --start-minutes 8 --minutes 5   # CPU minutes
    python benchmarks/rewards_receipts.py FOLDER --start runs/sroie              # from a finished run
    python benchmarks/rewards_receipts.py FOLDER --objectives reward:loss=gspo,prefer:loss=kto   # others

The embedded model is tuned on receipts (company, date, total), or was by a finished run, and its merged weights are
the start of everything else: `tailor compare-methods` spends the same CPU minutes on more tuning, on the reward, and
on MPO, with one table of scores on the same dev receipts. CPU minutes include sampling, wrong readings and reference
log-probabilities. The stored result has the paired differences of every objective from more tuning, by company, and
what the reward does not see over the first and the last quarter of its steps. Results of several starts stand side by
side in results/rewards_receipts.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import read_json, read_jsonl, write_json
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run.data_record import read_held_out
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.limits import without_unreadable
from mllm_tailor.run.merged import merged_folder
from mllm_tailor.run.pipeline import tune
from mllm_tailor.run.resolve import resolve
from mllm_tailor.run.run_dir import RunFolder, finished, own_run, read_scores
from mllm_tailor.run.variants import read_variants
from mllm_tailor.scoring import Scores, compare

RESULT = Path(__file__).parent / "results" / "rewards_receipts.json"
MORE, REWARD, MPO = (
    "cross_entropy",
    "reward:metric=exact:group_size=6:temperature=1.0:learning_rate=5e-4",
    "prefer:loss=mpo:learning_rate=2e-4",
)
WORDS = ",".join((REWARD, MPO))
METRICS = ("exact", "fuzzy", "f1")


FIELDS = {"company": "string", "date": "date", "total": "amount"}


def recipe_for(
    folder: Path, work: Path, name: str, fields: Mapping[str, Any] = FIELDS, room: int = 96
) -> dict[str, Any]:
    """The common part of start and comparison; `room` is of a reply, in tokens."""
    return {
        "name": name,
        "model": {"path": "embedded", "dtype": "float32", "trim": True},
        "data": {
            "train": str(folder), "held_out": {"column": "split", "value": "dev", "group_by": "company"},
            "dev": 0, "faulty": "exclude",
        },
        "task": {"extract": dict(fields)},
        "method": {"name": "full", "parts": ["projector", "language", "head"]},
        "train": {
            "batch_size": 4, "optimizer": "muon", "learning_rate": 5e-4, "weight_decay": 0.01, "processes": 1,
            "checkpoint_every": 2,
        },
        "predict": {"max_new_tokens": room, "batch_size": 12},
        "score": list(METRICS),
        "output": str(work),
    }  # fmt: skip


def tuned_start(folder: Path, work: Path, minutes: float) -> Path:
    """The merged checkpoint from which all objectives start."""
    values = recipe_for(folder, work, "start")
    values["train"] |= {"max_cpu_minutes": minutes, "epochs": 1000}
    run = resolve(make_recipe(values))
    with own_run(run.recipe) as start:
        if not start.training.exists():
            splits = without_unreadable(run, prepare(run)[0])
            tune(start, run, splits, VisionFeatureCache(folder=start.features))
        return merged_folder(run, start, start.merged)


def merged_start(run: Path, work: Path) -> Path:
    """The merged weights of a finished run."""
    target = work / "merged"
    if not target.exists():
        command = [sys.executable, "-m", "mllm_tailor.cli.main", "merge", str(run), str(target), "--samples", "0"]
        subprocess.run(command, check=True)
    return target


def compare_from(start: Path, options: argparse.Namespace, task: Mapping[str, Any]) -> Path:
    """The folder of `tailor compare-methods` over the objectives."""
    work = options.work
    values = recipe_for(options.folder, work, "after", **task)
    values["model"]["path"] = str(start)
    values["method"] = {"name": "lora", "rank": 32, "parts": ["language"]}
    values["train"] = {"batch_size": 4, "learning_rate": 1e-3, "processes": 1, "checkpoint_every": 2}
    values["data"]["limit"] = options.limit
    path = work / "after.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    command = [sys.executable, "-m", "mllm_tailor.cli.main", "compare-methods", str(path)]
    budget = f"{options.minutes} cpu minutes"
    subprocess.run([*command, "--methods", f"{MORE},{options.objectives}", "--budget", budget], check=True)
    return work / "after-methods"


def arm(folder: Path, base: Scores | None) -> dict[str, Any]:
    """Figures of one objective's run; the difference from `base`, the run that was only tuned on."""
    run = RunFolder(folder)
    saved, training = read_scores(run), read_json(run.training)
    tuned = Scores.from_row(saved["systems"][f"tuned_{saved['mode']}"])
    groups = read_held_out(run).groups
    rows = [row for _, row in read_jsonl(run.log) if "loss" in row]
    differences = {} if base is None else compare(base, tuned, groups=groups)
    return {
        "steps": training["steps"], "samples": training["samples"], "cpu_minutes": training["cpu_seconds"] / 60,
        "scores": tuned.values(),
        "from_start": {name: saved["gain"][name]["difference"] for name in METRICS},
        "from_more_tuning": {
            name: vars(gain.difference) | {"fixed": gain.fixed, "new_errors": gain.new_errors}
            for name, gain in differences.items()
        },
        "watches": watches(rows),
    }  # fmt: skip


def watches(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Means over the first and the last quarter of the steps."""
    quarter = max(1, len(rows) // 4)
    names = [name for name in rows[-1] if name in ("reward", "equal_groups", "entropy", "reply_tokens", "truncated")]
    names += [name for name in rows[-1] if name.startswith("watch/")]
    return {
        name: [round(sum(row[name] for row in part) / len(part), 4) for part in (rows[:quarter], rows[-quarter:])]
        for name in names
    }


def main() -> None:
    """Tune, compare, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of SROIE")
    parser.add_argument("--work", type=Path, default=Path(".benchmarks/rewards"), help="where the runs are")
    parser.add_argument("--start", type=Path, help="a finished run to start from, of the same held-out part")
    parser.add_argument("--start-minutes", type=float, default=15.0, help="CPU minutes of the tuned start")
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes of each objective after it")
    parser.add_argument("--limit", type=int, default=160, help="training receipts after the start")
    parser.add_argument("--room", type=int, default=288, help="tokens of a reply, with --start")
    parser.add_argument("--objectives", default=WORDS, help="compared with more tuning, as `--methods` of the command")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    task: dict[str, Any] = {}
    if options.start is None:
        start = tuned_start(options.folder, options.work, options.start_minutes)
        name, training = f"{options.start_minutes:g} CPU minutes", RunFolder(options.work / "start").training
    else:
        start = merged_start(options.start, options.work)
        name, training = f"run {options.start.name}", RunFolder(options.start).training
        recipe = yaml.safe_load((options.start / "recipe.yaml").read_text())
        task = {"fields": recipe["task"]["extract"], "room": options.room}
    folder = compare_from(start, options, task)
    comparison = read_json(folder / "comparison.json")
    runs = {variant.words: folder / variant.folder for variant in read_variants(f"{MORE},{options.objectives}")}
    done = {name: path for name, path in runs.items() if finished(RunFolder(path))}
    base = read_scores(RunFolder(done[MORE]))
    tuned = Scores.from_row(base["systems"][f"tuned_{base['mode']}"])
    start_scores = Scores.from_row(base["systems"][f"base_{base['mode']}"])
    result = {
        "machine": describe_machine() | {"threads": os.environ.get("OMP_NUM_THREADS", "all")},
        "start_cpu_minutes": read_json(training)["cpu_seconds"] / 60,
        "start_steps": read_json(training)["steps"],
        "cpu_minutes": options.minutes,
        "training_receipts": options.limit,
        "held_out": comparison["held_out"],
        "start": start_scores.values(),
        "objectives": {name: arm(path, None if name == MORE else tuned) for name, path in done.items()},
    }
    write_json(RESULT, (read_json(RESULT) if RESULT.exists() else {}) | {name: result})


if __name__ == "__main__":
    main()
