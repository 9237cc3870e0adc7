"""What a model of several stages knows after each of them: gained in a set's own stage, kept or forgotten since.

Set n belongs to stage n. Forgetting is measured much as Chaudhry et al. 2018 (1801.10112, section 3) do, from the score
after a set's own stage (they take the best so far) to the end, on the same samples, paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mllm_tailor.scoring.compare import Gain, Interval, gain
from mllm_tailor.scoring.scores import Scores


@dataclass(frozen=True)
class SetScores:
    """One held-out set: its headline metric, and the scores of the model in each state (None: not read yet)."""

    name: str
    metric: str
    scores: tuple[Scores | None, ...]
    groups: tuple[str | None, ...] = ()

    def value(self, state: int) -> Interval | None:
        """The score in one state, in percent, with its interval."""
        found = self.change(state, state)
        return found.tuned if found else None

    def change(self, before: int, after: int) -> Gain | None:
        """From one state to another, on the same samples."""
        one, other = self.scores[before], self.scores[after]
        return gain(one, other, self.metric, groups=self.groups or None) if one and other else None


@dataclass(frozen=True)
class Progression:
    """States in order, the untouched model first; set n (from 1) is learned between the states n - 1 and n."""

    states: tuple[str, ...]
    sets: tuple[SetScores, ...]

    def gained(self, place: int) -> Gain | None:
        """What the own stage of set `place` (from 1) brought."""
        return self.sets[place - 1].change(place - 1, place)

    def since(self, place: int) -> Gain | None:
        """What the stages after its own changed; None for the last set."""
        last = len(self.states) - 1
        return self.sets[place - 1].change(place, last) if place < last else None

    def whole(self, place: int) -> Gain | None:
        """From the untouched model to the end."""
        return self.sets[place - 1].change(0, len(self.states) - 1)

    def row(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return {"states": list(self.states), "sets": [self._set_row(place) for place in range(1, len(self.sets) + 1)]}

    def _set_row(self, place: int) -> dict[str, Any]:
        one = self.sets[place - 1]
        values = [one.value(state) for state in range(len(self.states))]
        changes = {"gained": self.gained(place), "since": self.since(place), "whole": self.whole(place)}
        return {
            "name": one.name,
            "metric": one.metric,
            "values": [asdict(value) if value else None for value in values],
            **{name: found.row() if found else None for name, found in changes.items()},
        }

    def changes(self) -> Iterator[tuple[SetScores, Gain | None, Gain | None, Gain | None]]:
        """Every set with what its stage brought, what was lost or gained since, and the whole."""
        for place, one in enumerate(self.sets, 1):
            yield one, self.gained(place), self.since(place), self.whole(place)


def forgotten(found: Progression) -> Sequence[str]:
    """Names of the sets on which later stages made the model worse, the interval clear of zero."""
    return [one.name for one, _, since, _ in found.changes() if since and since.difference.clear and not since.improved]
