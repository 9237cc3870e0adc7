"""Every optimizer by name, for recipes and lists: no torch here. The code is that of `training.optim`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mllm_tailor.core.registry import Entry, Registry


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """A registered optimizer and its costs."""

    state_bytes: int = 0  # per trained weight
    # How many gradients are in memory at a time; `one`: each is applied and freed before the next is complete.
    gradients: Literal["all", "one", "none"] = "all"
    shardable: bool = False  # whether its update is computed weight by weight, as slices of weights can be
    norm_first: bool = False  # clipping needs an extra backward pass for the gradient norm

    def evaluations(self, max_grad_norm: float | None) -> int:
        """How often a step computes its micro-batches; without gradients, once in either direction."""
        return 2 if self.gradients == "none" or (self.norm_first and max_grad_norm is not None) else 1


HERE = "mllm_tailor.training.optim"
TABLE = {
    "adamw": OptimizerEntry(
        f"{HERE}.torch_bnb:adamw", "Adam with decoupled decay; 8 bytes of state per weight", 8, shardable=True
    ),
    "adamw_8bit": OptimizerEntry(f"{HERE}.torch_bnb:adamw_8bit", "AdamW with 8-bit state (bitsandbytes)", 2),
    "paged_adamw_32bit": OptimizerEntry(
        f"{HERE}.torch_bnb:paged_adamw_32bit", "AdamW whose state moves to main memory under pressure", 8
    ),
    "paged_adamw_8bit": OptimizerEntry(
        f"{HERE}.torch_bnb:paged_adamw_8bit", "AdamW with 8-bit state in pageable memory", 2
    ),
    "lomo": OptimizerEntry(
        f"{HERE}.lomo:lomo",
        "gradient descent inside the backward pass; no state",
        gradients="one",
        norm_first=True,
    ),
    "adalomo": OptimizerEntry(
        f"{HERE}.lomo:adalomo", "LOMO with factored second moments, as in Adafactor", gradients="one"
    ),
    "galore": OptimizerEntry(f"{HERE}.galore_apollo:galore", "Adam in the largest singular directions; less state", 2),
    "apollo": OptimizerEntry(f"{HERE}.galore_apollo:apollo", "rates of Adam from random projections; least state", 1),
    "muon": OptimizerEntry(f"{HERE}.muon:muon", "orthogonalised momentum, for training from scratch", 5),
    "mezo": OptimizerEntry(
        f"{HERE}.mezo:mezo", "two forward passes, no backward: the memory of inference", gradients="none"
    ),
    "sgd": OptimizerEntry(f"{HERE}.torch_bnb:sgd", "plain gradient descent; no state", shardable=True),
}
OPTIMIZERS = Registry("optimizer", TABLE)
# Optimizers whose step is a single micro-batch, since no gradient is kept that another could be added to.
ONE_PASS = tuple(name for name, entry in TABLE.items() if entry.gradients == "one")
