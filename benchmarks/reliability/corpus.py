"""Bad inputs of every kind that a command reads, each by a name from which its content follows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reliability import corpus_data, corpus_decisions, corpus_models, corpus_recipes, corpus_runs
from reliability.case import Case

KINDS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "recipes": corpus_recipes.recipes,
    "overrides": corpus_recipes.overrides,
    "command lines": corpus_recipes.command_lines,
    "label files": corpus_data.label_files,
    "odd files": corpus_data.odd_files,
    "media": corpus_data.media,
    "model folders": corpus_models.model_folders,
    "run files": corpus_runs.run_files,
    "predictions": corpus_runs.predictions,
    "manifests of new files": corpus_runs.manifests,
    "calibrations": corpus_decisions.calibrations,
    "corrections": corpus_decisions.corrections,
    "reviews": corpus_decisions.reviews,
}


@dataclass(frozen=True)
class Named:
    """A case with its kind, which together name it."""

    kind: str
    case: Case

    @property
    def name(self) -> str:
        """Names the case in results and on the command line."""
        return f"{self.kind}: {self.case.name}"


def corpus(workspace: Path, kinds: Sequence[str] = ()) -> list[Named]:
    """Every case, in a fixed order; cases are made from the files of a workspace."""
    named = [Named(kind, case) for kind in kinds or KINDS for case in KINDS[kind](workspace)]
    names = [item.name for item in named]
    twice = [name for name, count in Counter(names).items() if count > 1]
    assert not twice, f"several cases are called {twice[:5]}"
    return named


def sample(cases: Sequence[Named], count: int) -> list[Named]:
    """A fixed choice in which every kind has its share."""
    chosen = random.Random(count).sample(range(len(cases)), min(count, len(cases)))
    return [cases[index] for index in sorted(chosen)]
