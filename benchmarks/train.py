"""Training speed beside the trainers one could pick instead: the same checkpoint, samples, batch and steps.

    python benchmarks/train.py --quick                       # the embedded model, a few minutes
    python benchmarks/train.py                               # also 150 million random weights
    python benchmarks/train.py --peers plain ours --rounds 5
    python benchmarks/train.py --build f139a21               # an earlier commit of ours as one more side
    python benchmarks/train.py --rates --works embedded      # operations and seconds of a step of ours, by part

Peers run in virtual environments of their own (benchmarks/environments.py), each training in its own process on
one thread, in interleaved rounds. Seconds are CPU seconds inside training, so that other work on the machine does
not decide; wall seconds stand beside them. Ours include the pass that computes the vision features. A peer that cannot
run is shown with its error. Results go to benchmarks/results/train.json; the command fails when a ratio fell by more
than 10 % under the one stored there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from builds import ROOT, THIS_BUILD, Side, unpack
from environments import python_of
from rates import describe_rates, rate_works
from rich.console import Console
from rich.table import Table
from rounds import Measurements
from safetensors.torch import save_file

from mllm_tailor.core.device import describe_machine, fast_bf16
from mllm_tailor.core.io import human_bytes, write_json, write_jsonl
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.models import InputSettings, LoadedModel, collate, encode, load_model, save_model
from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save
from mllm_tailor.recipe.schema import Tiles
from mllm_tailor.synthetic import draw_folder
from mllm_tailor.training.sampler import BatchSchedule

RESULTS = Path(__file__).parent / "results" / "train.json"
PROMPT = "Extract the company, date, address and total in json format. Respond with a valid JSON only."
TILES = Tiles(min=1, max=2, thumbnail=True)  # as the published recipe trains
EPOCHS = 3  # as published
SEED = 0
FASTEST = "bfloat16" if fast_bf16(torch.device("cpu")) else "float32"  # emulated bf16 would slow everybody down


@dataclass(frozen=True)
class Trainer:
    """One side of the comparison."""

    name: str
    script: str
    environment: str
    precision: str = FASTEST
    seen: bool = False  # whether the pictures' features are there from an earlier run
    build: Side = THIS_BUILD  # whose scripts run: the working tree, or an earlier commit

    def facts(self) -> dict[str, Any]:
        """For the JSON file."""
        return {name: value for name, value in self.__dict__.items() if name != "build"}


PEERS = {
    "plain": Trainer("published recipe, transformers Trainer", "plain", "trl"),
    "peft": Trainer("PEFT, plain loop", "peft_loop", "trl"),
    "trl": Trainer("TRL SFTTrainer", "trl_sft", "trl"),
    "llamafactory": Trainer("LLaMA-Factory", "llama_factory", "llamafactory"),
    "ms-swift": Trainer("ms-swift", "ms_swift", "ms-swift"),
    "ours": Trainer("ours", "ours", "ours"),
    "again": Trainer("ours, pictures seen in an earlier run", "ours", "ours", seen=True),
}


@dataclass(frozen=True)
class WorkerArgs:
    """What is trained: a checkpoint, and how much of it."""

    name: str
    samples: int
    batch: int
    rank: int  # a sixteenth of the language model's width, as published (128 of 2048)

    @property
    def course(self) -> BatchSchedule:
        """The order of the samples, which all trainers follow."""
        return BatchSchedule(self.samples, self.batch, EPOCHS, SEED)


WORKS = {"embedded": WorkerArgs("embedded", 16, 8, 16), "150M": WorkerArgs("150M", 2, 2, 48)}
QUICK = WorkerArgs("embedded", 8, 4, 16)


@dataclass
class Rounds:
    """What a trainer did in each round, or why it could not."""

    trainer: Trainer
    work: WorkerArgs
    found: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def median(self, name: str) -> float:
        """Of a number over the rounds."""
        return statistics.median(one[name] for one in self.found)

    @property
    def passes(self) -> int:
        """Samples seen in a round."""
        return self.work.course.steps * self.work.batch

    def rate(self) -> float:
        """Samples a CPU second, by the median round."""
        return self.passes / self.median("cpu_seconds")

    def seconds_to(self, loss: float) -> float | None:
        """Processor seconds until the dev loss was first seen at or under `loss`."""
        reached = [next((at["cpu"] for at in one["curve"] if at["dev_loss"] <= loss), None) for one in self.found]
        return None if None in reached else statistics.median(reached)  # type: ignore[type-var]


def earlier_build(commit: str, folder: Path) -> Trainer:
    """An earlier commit of ours, unpacked into `folder`."""
    return Trainer(f"ours at {commit}", "ours", "ours", build=unpack(commit, folder))


def write_model(work: WorkerArgs, folder: Path) -> None:
    """The embedded model with the published tiles, or 155 million random weights with a vocabulary of 32,768."""
    if work.name == "embedded":
        save_model(load_model("embedded", inputs=InputSettings(tiles=TILES)), folder)
        return
    tokenizer = build_tokenizer()
    torch.manual_seed(SEED)
    model = build_internvl(
        tokenizer, vision_width=512, vision_layers=10, text_width=768, text_layers=10, tie_embeddings=False
    )
    model.resize_token_embeddings(32_768)  # rows no text uses, at the cost a real vocabulary has
    stored = model.to(torch.bfloat16).to(getattr(torch, FASTEST))  # LLaMA-Factory computes in the type it finds
    save(stored, build_processor(tokenizer, max_tiles=TILES.max), folder)


def write_samples(work: WorkerArgs, folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Drawn receipts as rows {image, prompt, answer}: to learn, and to measure the dev loss on."""
    draw_folder(folder, work.samples, 2, seed=SEED)
    rows: dict[str, list[dict[str, str]]] = {"train": [], "dev": []}
    for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines():
        told = json.loads(line)
        answer = json.dumps(told["entities"], ensure_ascii=False, indent=4)
        rows[told["split"]].append({"image": str(folder / told["file_name"]), "prompt": PROMPT, "answer": answer})
    return rows["train"], rows["dev"]


def encode_dev(model: LoadedModel, rows: Sequence[dict[str, str]]) -> dict[str, torch.Tensor]:
    """One batch, the same numbers for every trainer."""
    samples = [
        Sample(row["image"], (Media("image", Path(row["image"])),), row["prompt"], row["answer"]) for row in rows
    ]
    return {
        name: tensor.contiguous() for name, tensor in collate([encode(one, model) for one in samples], model).items()
    }


def prepare(work: WorkerArgs, folder: Path) -> dict[str, Any]:
    """Write checkpoint and samples; the part of the job all trainers share."""
    write_model(work, folder / "model")
    train, dev = write_samples(work, folder / "receipts")
    course = work.course
    write_jsonl(folder / "unique.jsonl", train)
    write_jsonl(
        folder / "rows.jsonl", [train[number] for step in range(course.steps) for number in course.samples(step)]
    )
    save_file(encode_dev(load_model(folder / "model"), dev), folder / "dev.safetensors")
    return {
        "model": str(folder / "model"),
        "rows": str(folder / "rows.jsonl"),
        "unique": str(folder / "unique.jsonl"),
        "dev": str(folder / "dev.safetensors"),
        "steps": course.steps,
        "batch": work.batch,
        "micro": 1,
        "rank": work.rank,
        "alpha": 2 * work.rank,
        "features": str(folder / "features"),
        "rate": 5e-4,
        "seed": SEED,
        "marks": sorted(course.ends(1.0)),
    }


def run_once(trainer: Trainer, job: dict[str, Any], folder: Path, limit: float) -> dict[str, Any]:
    """One training in its own process.

    Raises:
        RuntimeError: with the last of its words, when it fails or takes longer than `limit` seconds.
    """
    python = python_of(trainer.environment)
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    told = job | {"result": str(result), "scratch": str(scratch), "precision": trainer.precision}
    (folder / "job.json").write_text(json.dumps(told | {"seen": trainer.seen}))
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "USE_HF": "1"}
    environment = (trainer.build.environment if trainer.environment == "ours" else dict(os.environ)) | quiet
    if trainer.environment != "ours":
        environment.pop("PYTHONPATH", None)
    script = trainer.build.folder / "benchmarks" / "trainers" / f"{trainer.script}.py"
    words = [str(python), str(script), str(folder / "job.json")]
    try:
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"took longer than {limit:.0f} seconds") from error
    if not result.exists():
        raise RuntimeError((done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}")[-1500:])
    return dict(json.loads(result.read_text()))


def compare(
    work: WorkerArgs,
    trainers: Mapping[str, Trainer],
    count: int,
    limit: float,
    folder: Path,
    measured: Measurements | None = None,
) -> list[Rounds]:
    """Interleaved rounds of the trainers by key; what `measured` holds from an earlier call is not measured again."""
    job = prepare(work, folder)
    measured = measured or Measurements()

    def run(trainer: Trainer) -> dict[str, Any]:
        try:
            return run_once(trainer, job, folder, limit)
        except RuntimeError as error:
            raise RuntimeError(str(error).replace(str(folder), "SCRATCH").replace(str(ROOT), ".")) from None

    measured.interleave(
        {key: lambda _, trainer=trainer: run(trainer) for key, trainer in trainers.items()},  # type: ignore[misc]
        count,
        f"training {work.name}",
    )
    return [Rounds(one, work, measured.found[key], measured.errors.get(key)) for key, one in trainers.items()]


def rows_of(everyone: Sequence[Rounds]) -> list[dict[str, Any]]:
    """One row a trainer: medians, ratios, and every round's numbers."""
    ran = {one.trainer.name: one for one in everyone if one.found}
    plain = ran.get(PEERS["plain"].name)
    peers = [one for one in ran.values() if one.trainer.environment != "ours"]
    best = max((one.rate() for one in peers), default=None)
    goal = plain.found[0]["curve"][-1]["dev_loss"] if plain else None
    rows = []
    for one in everyone:
        row: dict[str, Any] = {"work": asdict(one.work), **one.trainer.facts(), "error": one.error}
        if one.found:
            row |= {
                "samples_per_cpu_second": one.rate(),
                "to_plain": one.rate() / plain.rate() if plain else None,
                "to_best_peer": one.rate() / best if best else None,
                "memory_to_plain": one.median("peak_memory") / plain.median("peak_memory") if plain else None,
                "goal_dev_loss": goal,
                "seconds_to_goal": one.seconds_to(goal) if goal is not None else None,
                "to_ours": one.rate() / ran["ours"].rate() if "ours" in ran else None,
                "rounds": one.found,
            }
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table of one work."""
    work = rows[0]["work"]
    table = Table(
        "trainer", "samples a CPU s", "spread", "to plain", "to best peer", "to ours", "peak memory", "above model",
        "dev loss", "CPU s to goal", "first, last loss", title=f"{work['name']}: {work['samples']} receipts, batch "
        f"{work['batch']}, {EPOCHS} epochs, rank {work['rank']}",
    )  # fmt: skip
    for row in rows:
        if "rounds" not in row:
            table.add_row(row["name"], "cannot run:", row["error"].splitlines()[-1][:80])
            continue
        found = row["rounds"]
        passes = len(found[0]["losses"]) * work["batch"]
        cpu = [one["cpu_seconds"] for one in found]
        peak = statistics.median(one["peak_memory"] for one in found)
        above = statistics.median(one["peak_memory"] - one["memory_before"] for one in found)
        to_goal = row["seconds_to_goal"]
        table.add_row(
            row["name"],
            f"{row['samples_per_cpu_second']:.3f}",
            f"{passes / max(cpu):.3f}–{passes / min(cpu):.3f}",
            *(f"{row[name]:.2f}" if row[name] else "" for name in ("to_plain", "to_best_peer", "to_ours")),
            human_bytes(int(peak)),
            human_bytes(int(above)),
            f"{found[0]['curve'][-1]['dev_loss']:.4f}",
            f"{to_goal:.1f}" if to_goal is not None else "not reached",
            f"{found[0]['losses'][0]:.4f}, {found[0]['losses'][-1]:.4f}",
        )
    Console(width=200).print(table)


def show_rates(name: str, rates: dict[str, Any]) -> None:
    """What share of large bf16 products' rate our training step reaches."""
    parts = ", ".join(f"{part} {100 * found['share']:.0f} %" for part, found in rates["parts"].items())
    kind = "bf16" if rates["bf16"] else "float32"
    top = f"{rates['matmul_gflops']:.0f} GFLOP/s of {kind} products on one thread"
    print(f"{name}: a step reaches {100 * rates['step_share']:.0f} % of {top} ({parts})")
    print(f"{name}: pictures seen in an earlier run cost {100 * rates['vision_of_a_second_run']:.1f} % of a step")


def fallen(rows: Sequence[dict[str, Any]], stored: Sequence[dict[str, Any]]) -> list[str]:
    """Where our ratio to the plain recipe or the best peer is more than 10 % under the stored one."""
    before = {row["work"]["name"]: row for row in stored if row["name"] == "ours" and "rounds" in row}
    worse = []
    for row in rows:
        old = before.get(row["work"]["name"])
        if row["name"] != "ours" or "rounds" not in row or old is None or old["work"] != row["work"]:
            continue
        for name in ("to_plain", "to_best_peer"):
            if row[name] and old[name] and row[name] < 0.9 * old[name]:
                worse.append(f"{row['work']['name']} {name}: {row[name]:.2f}, stored {old[name]:.2f}")
    return worse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the embedded model alone, fewer samples, one round")
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--build", metavar="COMMIT", help="an earlier commit of ours as one more side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600, help="seconds a single training may take")
    parser.add_argument("--save", action="store_true", help="store these ratios as the ones to hold")
    parser.add_argument("--rates", action="store_true", help="no training: operations and seconds of a step, by part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.rates:
        ranks = {name: WORKS[name].rank for name in arguments.works}
        rate_works(ranks, lambda name, folder: prepare(QUICK if name == "embedded" else WORKS[name], folder))
        return
    trainers = {name: PEERS[name] for name in arguments.peers}
    works = [QUICK] if arguments.quick else [WORKS[name] for name in arguments.works]
    rows: list[dict[str, Any]] = []
    rates: dict[str, Any] = {}
    for work in works:
        with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as sources:
            if arguments.build:
                trainers["base"] = earlier_build(arguments.build, Path(sources))
            count = 1 if arguments.quick else arguments.rounds
            rows += (of_work := rows_of(compare(work, trainers, count, arguments.limit, Path(scratch))))
            show(of_work)
            rates[work.name] = describe_rates(Path(scratch), work.rank)
            show_rates(work.name, rates[work.name])
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": [], "step_by_part": {}}
    if arguments.save or not stored["rows"]:
        # What was measured beside the plain recipe stays when a later run goes without it.
        against = {row["name"] for row in stored["rows"] if row.get("to_plain")}
        rows = [row for row in rows if row.get("to_plain") or row["name"] not in against]
        done = {(row["work"]["name"], row["name"]) for row in rows}
        kept = [row for row in stored["rows"] if (row["work"]["name"], row["name"]) not in done]
        facts = {"machine": describe_machine(), "arguments": vars(arguments)}
        write_json(RESULTS, {**facts, "step_by_part": stored["step_by_part"] | rates, "rows": kept + rows})
    elif worse := fallen(rows, stored["rows"]):
        sys.exit(f"more than 10 % under the stored ratio: {'; '.join(worse)}")


if __name__ == "__main__":
    main()
