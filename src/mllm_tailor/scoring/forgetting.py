"""Forgetting across stages: what each stage gained on its own held-out set, and what later stages lost there.

Set n belongs to stage n. Forgetting is measured as by Chaudhry et al. 2018 (1801.10112, section 3), except that it
starts from the score after the set's own stage instead of the best score so far; all changes are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from mllm_tailor.scoring.compare import Gain, gain
from mllm_tailor.scoring.intervals import Interval
from mllm_tailor.scoring.scores import Scores


@dataclass(frozen=True)
class SetScores:
    """One held-out set: its headline metric, and the model's scores in each state (None: not predicted yet)."""

    name: str
    metric: str
    scores: tuple[Scores | None, ...]
    groups: tuple[str | None, ...] = ()

    def value(self, state: int) -> Interval | None:
        """The score in one state, in percent, with its interval."""
        change = self.change(state, state)
        return change.tuned if change else None

    def change(self, before: int, after: int) -> Gain | None:
        """From one state to another, on the same samples."""
        first, second = self.scores[before], self.scores[after]
        return gain(first, second, self.metric, groups=self.groups or None) if first and second else None


class StageChange(NamedTuple):
    """One held-out set with what its own stage gained, what the stages since changed, and both together."""

    set_scores: SetScores
    gained: Gain | None
    since: Gain | None  # None for the last set
    total: Gain | None


@dataclass(frozen=True)
class Forgetting:
    """Scores of every set in every state, the base model first; stage n lies between the states n - 1 and n."""

    states: tuple[str, ...]
    sets: tuple[SetScores, ...]

    def gained(self, number: int) -> Gain | None:
        """What set `number`'s own stage gained (from 1)."""
        return self.sets[number - 1].change(number - 1, number)

    def since(self, number: int) -> Gain | None:
        """What later stages changed; None for the last set."""
        last = len(self.states) - 1
        return self.sets[number - 1].change(number, last) if number < last else None

    def total(self, number: int) -> Gain | None:
        """From the base model to the last state."""
        return self.sets[number - 1].change(0, len(self.states) - 1)

    def changes(self) -> Iterator[StageChange]:
        """The changes of every set."""
        for number, set_scores in enumerate(self.sets, 1):
            yield StageChange(set_scores, self.gained(number), self.since(number), self.total(number))

    def forgotten(self) -> Sequence[str]:
        """Names of the sets whose score later stages lowered, with an interval that excludes zero."""
        return [change.set_scores.name for change in self.changes() if change.since and change.since.worsened]

    def row(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return {"states": list(self.states), "sets": [self._set_row(change) for change in self.changes()]}

    def _set_row(self, change: StageChange) -> dict[str, Any]:
        values = [change.set_scores.value(state) for state in range(len(self.states))]
        gains = {"gained": change.gained, "since": change.since, "total": change.total}
        return {
            "name": change.set_scores.name,
            "metric": change.set_scores.metric,
            "values": [asdict(value) if value else None for value in values],
            **{name: gain.row() if gain else None for name, gain in gains.items()},
        }
