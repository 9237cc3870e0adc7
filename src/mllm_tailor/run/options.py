"""How a recipe is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mllm_tailor.run.mapper import Mapper, in_turn


@dataclass(frozen=True)
class Options:
    """What the recipe itself does not state."""

    exclude_faulty: bool = False  # leave faulty samples out instead of refusing
    fresh: bool = False  # set an existing run of this name aside
    accept_changes: bool = False  # of the data since the run began: compute again what followed from them
    mapper: Mapper = in_turn  # where the folds of a cross-validation are trained
    base_replies: Path | None = None  # run whose base replies are taken over where it held out the same samples


DEFAULT = Options()
