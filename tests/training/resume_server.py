"""Trains a small job again and again in forked children that are killed on the way. Run by test_resume.py.

A process of its own, because forking is only safe before torch has started threads; forking saves the five seconds of
imports that each of the many children would otherwise need.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.tensorboard
from fixtures.rollouts import LONGEST, even_tokens
from fixtures.small_job import make_conversations, prepare, train

from mllm_tailor.core.errors import TailorError
from mllm_tailor.models import measure_length
from mllm_tailor.training import ObjectiveInputs, TrainingEvent
from mllm_tailor.training.objectives import cross_entropy


def kill_at(moment: int) -> Callable[..., Any]:
    """A counter that kills this very process when it is called for the `moment`-th time (from 0)."""
    count = 0

    def passing(*_: Any) -> None:
        nonlocal count
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    return passing


def before(owner: Any, name: str, call: Callable[..., Any]) -> None:
    """Call `call` in front of every call of `owner.name`."""
    wrapped = getattr(owner, name)

    def wrapper(*arguments: Any, **named: Any) -> Any:
        call()
        return wrapped(*arguments, **named)

    setattr(owner, name, wrapper)


def chance_state() -> str:
    """A hash of the state of every random generator."""
    state = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def job(
    prepared: tuple[Any, Any, Any],
    samples: list[Any],
    objective_inputs: ObjectiveInputs,
    folder: Path,
    moment: int | None,
) -> None:
    """One training, killed at a moment: a pass, a flush to disk, a rename, a finished step, a checkpoint, a score."""
    passing = kill_at(-1 if moment is None else moment)
    before(os, "fsync", passing)
    before(Path, "rename", passing)
    before(cross_entropy, "answer_loss", passing)
    model, method, recipe = prepared

    def on_event(event: TrainingEvent) -> None:
        if event.kind == "step":
            with (folder.parent / f"{folder.name}.chance").open("a") as file:
                file.write(f"{event.step} {chance_state()}\n")
        passing()

    def evaluate() -> dict[str, float]:
        weights = [weight.detach().double().sum() for weight in model.model.parameters() if weight.requires_grad]
        passing()
        return {"score": float(torch.sin(1000 * torch.stack(weights).sum()))}

    train(
        model, method, samples, recipe, folder, evaluate=evaluate, on_event=on_event, objective_inputs=objective_inputs
    )


def child(*arguments: Any, seconds: float | None = None) -> int:
    """Run `job` in a forked child, killed after `seconds` if given; 0 when it finished, -9 when it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            job(*arguments)
            os._exit(0)
        except TailorError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_and_resume(model_folder: Path, work: Path, spec: dict[str, Any]) -> dict[str, list[int]]:
    """One undisturbed training, and two that are killed again and again; the exit codes of all children."""
    samples = make_conversations(work / "pictures", spec.get("samples", 12))
    prepared = prepare(Path(spec.get("model", model_folder)), spec["method"], **spec["train"])
    measure_length(samples[0], prepared[0])  # compiles the chat template for all children
    given = (
        prepared,
        samples,
        ObjectiveInputs(
            rejected=spec.get("rejected"),
            sample_replies=even_tokens(prepared[0], spec["replies"]) if "replies" in spec else None,
            longest_reply=LONGEST,
        ),
    )  # never trained here, only in forked copies
    begun = time.monotonic()
    codes = {"whole": [child(*given, work / "whole", None)]}
    whole_seconds = time.monotonic() - begun
    chance = random.Random(spec["seed"])
    for name in ("moments", "seconds"):
        codes[name] = []
        for _ in range(spec[name]):
            if name == "moments":
                codes[name].append(child(*given, work / name, chance.randrange(2, spec["span"])))
            else:
                after = chance.uniform(0.2, 0.9) * whole_seconds
                codes[name].append(child(*given, work / name, None, seconds=after))
        codes[name].append(child(*given, work / name, None))
    return codes


def main() -> None:
    """Arguments: model folder, working folder, specifications by name as JSON. Prints the exit codes as JSON."""
    model_folder, work = Path(sys.argv[1]), Path(sys.argv[2])
    specs = json.loads(sys.argv[3])
    print(json.dumps({name: kill_and_resume(model_folder, work / name, spec) for name, spec in specs.items()}))


if __name__ == "__main__":
    main()
