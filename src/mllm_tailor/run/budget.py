"""What several trainings may each spend: `10m`, `10 cpu minutes`, `3 epochs`, `200 steps` or `8 GB`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from mllm_tailor.core.errors import RecipeError

Unit = Literal["minutes", "cpu minutes", "epochs", "steps", "memory"]

FORM = re.compile(r"^(\d+(?:\.\d+)?)\s*((?:cpu\s*)?[a-zA-Z]+)$", re.IGNORECASE)
UNITS: dict[str, tuple[Unit, float]] = (
    dict.fromkeys(("m", "min", "minute", "minutes"), ("minutes", 1.0))
    | dict.fromkeys(("cpum", "cpumin", "cpuminute", "cpuminutes"), ("cpu minutes", 1.0))
    | dict.fromkeys(("e", "epoch", "epochs"), ("epochs", 1.0))
    | dict.fromkeys(("s", "step", "steps"), ("steps", 1.0))
    | {name: ("memory", float(2**30)) for name in ("g", "gb", "gib")}
    | {name: ("memory", float(2**20)) for name in ("mb", "mib")}
)


@dataclass(frozen=True)
class Budget:
    """An amount: minutes, CPU minutes, epochs, optimizer steps, or bytes of peak memory."""

    unit: Unit
    amount: float

    def train(self) -> dict[str, Any]:
        """Settings of `train` that keep to it, whatever the recipe had; memory is measured, not set."""
        if self.unit == "memory":
            return {}
        values: dict[str, Any] = {"steps": None, "max_minutes": None, "max_cpu_minutes": None}
        if self.unit in ("minutes", "cpu minutes"):
            limit = "max_minutes" if self.unit == "minutes" else "max_cpu_minutes"
            return values | {limit: self.amount, "epochs": 1000}
        return values | ({"steps": max(1, round(self.amount))} if self.unit == "steps" else {"epochs": self.amount})

    def part(self, share: float) -> Budget:
        """A share of it."""
        return Budget(self.unit, self.amount * share)

    def exceeded(self, peak_bytes: int) -> bool:
        """Whether a training took more memory than allowed."""
        return self.unit == "memory" and peak_bytes > self.amount


def read_budget(words: str) -> Budget:
    """From the command line's words.

    Raises:
        RecipeError: saying what can be written.
    """
    match = FORM.match(words.strip())
    unit = UNITS.get("".join(match[2].lower().split())) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise RecipeError(
            f"`{words}` is not a budget — write minutes, CPU minutes, epochs, steps or memory: 10m, 10 cpu minutes, "
            "3e, 200 steps, 8GB"
        )
    return Budget(unit[0], float(match[1]) * unit[1])
