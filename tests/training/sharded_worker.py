"""Trains sharded models, each in several processes: they are forked, so that what they import is imported once.

Run by test_sharding.py with the model folder, the folder of pictures, and a JSON list of trainings.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from fixtures.small_job import make_conversations, prepare, train
from torch.distributed.tensor import DTensor

from mllm_tailor.training import TrainingEvent
from mllm_tailor.training.distributed import join_process_group

METHODS: dict[str, Any] = {
    "lora": {"name": "lora", "rank": 4, "parts": ["vision", "language"]},
    "qlora": {"name": "qlora", "rank": 4},
    "full": {"name": "full", "parts": ["vision", "projector", "language", "head"]},
}
# Three micro-batches a step, so that two processes run unequal numbers of them.
SETTINGS: dict[str, Any] = {
    "micro_batch_size": 2,
    "batch_size": 5,
    "learning_rate": 0.02,
    "optimizer": "sgd",
    "checkpoint_every": 1e-9,
}


def rising_score() -> dict[str, float]:
    """Every score is the best so far, so that the adapter holds the last weights."""
    return {"score": time.monotonic()}


def main() -> None:
    """All trainings, one after the other."""
    model_folder, pictures = Path(sys.argv[1]), Path(sys.argv[2])
    for job in json.loads(sys.argv[3]):
        folder = Path(job["folder"])
        folder.mkdir(exist_ok=True)
        context = get_context("fork")
        ranks = range(job["processes"])
        processes = [context.Process(target=_train, args=(rank, model_folder, pictures, job)) for rank in ranks]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        (folder / "exit_codes.json").write_text(json.dumps(codes))
        (folder / "rendezvous").unlink(missing_ok=True)


def _train(rank: int, model_folder: Path, pictures: Path, job: dict[str, Any]) -> None:
    folder, last = Path(job["folder"]), job.get("killed_after")
    torch.set_num_threads(1)
    join_process_group(torch.device("cpu"), folder / "rendezvous", rank, job["processes"])
    samples = make_conversations(pictures, 10)
    optimizer = {"optimizer": job["optimizer"]} if "optimizer" in job else {}
    model, method, recipe = prepare(model_folder, METHODS[job["method"]], shard="fsdp", **SETTINGS | optimizer)

    def kill(event: TrainingEvent) -> None:
        if rank == 1 and (event.kind, event.step) == ("checkpoint", last):
            os.kill(os.getpid(), signal.SIGKILL)

    train(model, method, samples, recipe, folder, evaluate=rising_score, on_event=kill)
    weights = list(model.model.parameters())
    held = sum((weight.to_local() if isinstance(weight, DTensor) else weight).numel() for weight in weights)
    (folder / f"rank_{rank}.json").write_text(json.dumps([held, sum(weight.numel() for weight in weights)]))


if __name__ == "__main__":
    main()
