"""What the three stages share: the clock that ends them and sets the rate, the log, and the checkpoints.

Under torchrun the gradients of all processes are averaged; in the stage of joining each draws pictures of its own. On a
processor's few cores this uses them better than several threads do.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator

import torch
from mllm_tailor.training import distributed as processes
from torch import nn

from pretraining import checkpoint, optim

SAVE_EVERY = 120  # seconds


class Stage:
    """A stage of `minutes` of the wall clock, its restarts included; `facts` is what it remembers beside weights.

    `until` (seconds since 1970) ends a session of it, its minutes used up or not.
    """

    def __init__(
        self,
        name: str,
        minutes: float,
        modules: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer],
        rate: float,
        flat: float,
        every: int,
        until: float = math.inf,
    ) -> None:
        self.name, self.minutes, self.modules, self.optimizers = name, minutes, modules, optimizers
        self.rate, self.flat, self.every, self.until = rate, flat, every, until
        self.facts: dict[str, float] = {"step": 0, "seconds": 0.0}
        self.done = 0.0  # share of the minutes that is over
        self._figures: list[list[float]] = []

    def resume(self) -> None:
        """Go on from the stage's own checkpoint."""
        self.facts = checkpoint.load(self.name, self.modules, self.optimizers)

    def steps(self) -> Iterator[float]:
        """The share of the time that is over, once for each step, until none is left; saves every two minutes.

        SIGTERM ends it after the step at hand, saved too.
        """
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "until", 0.0))
        self._started, saved = time.time() - self.facts["seconds"], time.time()
        while (seconds := self._clock()) < 60 * self.minutes and not self._over():
            self.done = seconds / 60 / self.minutes
            yield self.done
            if time.time() - saved > SAVE_EVERY:
                self._save()
                saved = time.time()
        self._save()

    def _clock(self) -> float:
        """Seconds since the stage began, the same in all processes."""
        device = optim.trained(self.optimizers)[0].device
        return processes.all_reduce_sum(time.time() - self._started, device) / processes.world_size()

    def _over(self) -> bool:
        """Whether the moment has come for any of the processes; all of them end after the same step."""
        device = optim.trained(self.optimizers)[0].device
        return processes.all_reduce_sum(float(time.time() >= self.until), device) > 0

    def learn(self, loss: torch.Tensor, figures: dict[str, float | torch.Tensor], notes: str = "") -> None:
        """One update; every so many steps the means of `figures` since the last time are printed, and `notes`."""
        (loss / processes.world_size()).backward()
        processes.sum_gradients(optim.trained(self.optimizers))
        optim.step(self.optimizers, self.rate * optim.rate_at(self.done, flat=self.flat))
        self.facts["step"] += 1
        self._figures.append([float(torch.as_tensor(value).detach()) for value in figures.values()])
        if self.facts["step"] % self.every == 0 and processes.rank() == 0:
            means = torch.tensor(self._figures).mean(0).tolist()
            shown = ", ".join(f"{name} {value:.3f}" for name, value in zip(figures, means, strict=True))
            clock = f"{(time.time() - self._started) / 60:.1f} min step {self.facts['step']:.0f}"
            print(clock, shown, notes, flush=True)
            self._figures = []

    def _save(self) -> None:
        self.facts["seconds"] = time.time() - self._started
        if processes.rank() == 0:
            checkpoint.save(self.name, self.modules, self.optimizers, self.facts)
