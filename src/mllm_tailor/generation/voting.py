"""Votes of several framings: one prediction from the readings of the same sample with other margins, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.sample import Prediction, Where
from mllm_tailor.generation.confidence import DIGITS, MOST_CANDIDATES, other_values
from mllm_tailor.recipe import DecodingMode, Predict
from mllm_tailor.scoring.text import normalise, typed_text
from mllm_tailor.tasks import ChoiceTask, FieldTask, RegionTask, Task, field_kinds

Kinds = Mapping[str, str]  # type by field or column (`items.price`)


def check_framings(task: Task, settings: Predict) -> None:
    """Refuse several framings where replies cannot be put to a vote.

    Raises:
        RecipeError: naming the setting.
    """
    if settings.framings > 1 and not takes_votes(task):
        kind = "regions" if isinstance(task, RegionTask) else "text"
        raise RecipeError(
            f"predict.framings: `{task.name}` replies with {kind}, of which several readings cannot be put to a vote — "
            "set predict.framings=1"
        )


def takes_votes(task: Task) -> bool:
    """Whether replies are fields or one of a closed set, so that those of several framings can be compared."""
    return isinstance(task, (FieldTask, ChoiceTask)) and not isinstance(task, RegionTask)


def in_framings(conversation: Conversation, count: int) -> list[Conversation]:
    """The conversation with every image in each of the first `count` framings; itself alone where it shows none."""
    if not any(media.kind == "image" for media in conversation.media):
        return [conversation]
    return [
        conversation.with_media(
            [replace(media, framing=framing) if media.kind == "image" else media for media in conversation.media]
        )
        for framing in range(count)
    ]


@dataclass
class FramingVotes:
    """Collects the predictions of a sample's framings, in each decoding mode, until all are there."""

    task: Task
    expected: dict[int, int] = field(default_factory=dict)  # framings by index of the sample
    predictions: dict[tuple[int, DecodingMode], dict[int, Prediction]] = field(default_factory=dict)

    def expect(self, index: int, framings: int) -> None:
        """Announce in how many framings a sample is read."""
        self.expected[index] = framings

    def add(self, index: int, mode: DecodingMode, framing: int, prediction: Prediction) -> Prediction | None:
        """Add the prediction of a framing; returns the joint one once all framings are there."""
        readings = self.predictions.setdefault((index, mode), {})
        readings[framing] = prediction
        if len(readings) < self.expected[index]:
            return None
        del self.predictions[index, mode]
        return vote([readings[number] for number in sorted(readings)], self.task.field_names, field_kinds(self.task))

    def forget(self, index: int) -> None:
        """Drop what is kept of a sample."""
        self.expected.pop(index, None)
        for key in [key for key in self.predictions if key[0] == index]:
            del self.predictions[key]


def vote(readings: Sequence[Prediction], names: Sequence[str], kinds: Kinds) -> Prediction:
    """One prediction from those of a sample's framings, the unchanged image first.

    Values that are equal after the normalisation of their field's type vote together, each with the weight of its raw
    confidence (`mean`); the value of the most weight is taken as the surest framing writes it. A list or
    object is one value. Where the votes are equal, the earlier framing decides.

    Of the raw scores, `mean` is its average over all framings, taking 0 where another value was read, and `framings`
    the share of framings that read the value; the others are averages over those framings. A value inside a list or
    object is compared with what the other framings read in its place.
    """
    ballots = [_Ballot.of(reading, kinds) for reading in readings]
    surest = {name: winner for name in names if (winner := _surest(name, ballots)) is not None}
    seconds = sum(reading.seconds for reading in readings)
    if not surest:
        return replace(readings[0], seconds=seconds)
    fields = {name: ballot.reading.fields[name] for name, ballot in surest.items()}
    chosen = {path: key for name, ballot in surest.items() for path, key in ballot.inside(name)}
    raw = {
        path: _joint_scores(path, key, ballots)
        for name, ballot in surest.items()
        for path, key in ballot.inside(name)
        if path in ballot.reading.raw
    }
    same = next((reading.text for reading in readings if dict(reading.fields) == fields), None)
    return Prediction(
        readings[0].id,
        json.dumps(fields, ensure_ascii=False) if same is None else same,
        fields,
        seconds=seconds,
        cut=any(ballot.reading.cut for ballot in surest.values()),
        raw=raw,
        where=_locations(ballots[0], chosen),
        candidates=_candidates(fields, chosen, surest, ballots),
    )


@dataclass(frozen=True)
class _Ballot:
    """What one framing says: its reading, and each value by path in the form in which values are compared."""

    reading: Prediction
    keys: Mapping[str, str]

    @classmethod
    def of(cls, reading: Prediction, kinds: Kinds) -> _Ballot:
        cells = (cell for name, value in reading.fields.items() for cell in _cells(value, name, name, kinds))
        return cls(reading, dict(cells))

    def weight(self, name: str) -> float:
        return self.reading.raw.get(name, {}).get("mean", 0.0)

    def inside(self, name: str) -> Iterator[tuple[str, str]]:
        """Path and key of a field's value and of all values in it, in the order of the raw scores' rows."""
        yield from ((path, key) for path, key in self.keys.items() if path == name or path.startswith(f"{name}."))


def _cells(value: Any, path: str, name: str, kinds: Kinds) -> Iterator[tuple[str, str]]:
    """Path and comparable form of a value and of those in it, the outer before the inner."""
    yield path, _key(value, name, kinds)
    if isinstance(value, Mapping):
        for inner, cell in value.items():
            yield from _cells(cell, f"{path}.{inner}", f"{name}.{inner}", kinds)
    elif isinstance(value, list):
        for row, entry in enumerate(value):
            if isinstance(entry, Mapping):
                for inner, cell in entry.items():
                    yield from _cells(cell, f"{path}.{row}.{inner}", f"{name}.{inner}", kinds)


def _key(value: Any, name: str, kinds: Kinds) -> str:
    """What equal values have in common: numbers and amounts as numbers, texts without case and spacing."""
    if isinstance(value, Mapping):
        return json.dumps({str(inner): _key(cell, f"{name}.{inner}", kinds) for inner, cell in value.items()})
    if isinstance(value, list):
        return json.dumps([_key(entry, name, kinds) for entry in value])
    kind = kinds.get(name, "string")
    return normalise(typed_text(value, kind), kind)


def _surest(name: str, ballots: Sequence[_Ballot]) -> _Ballot | None:
    """Of the framings that read the field's value of the most weight, the surest; None where no framing has it."""
    parties: dict[str, list[_Ballot]] = {}
    for ballot in ballots:
        if name in ballot.keys:
            parties.setdefault(ballot.keys[name], []).append(ballot)
    if not parties:
        return None
    party = max(parties.values(), key=lambda members: (sum(each.weight(name) for each in members), len(members)))
    return max(party, key=lambda ballot: ballot.weight(name))


def _joint_scores(path: str, key: str, ballots: Sequence[_Ballot]) -> dict[str, float]:
    agreeing = [scores for each in ballots if each.keys.get(path) == key and (scores := each.reading.raw.get(path))]
    scores = {
        name: sum(each[name] for each in agreeing) / (len(ballots) if name == "mean" else len(agreeing))
        for name in agreeing[0]
        if all(name in each for each in agreeing)
    }
    return {name: round(score, DIGITS) for name, score in scores.items()} | {
        "framings": round(len(agreeing) / len(ballots), DIGITS)
    }


def _locations(unchanged: _Ballot, chosen: Mapping[str, str]) -> Where | None:
    """Of values that were read in the image as it is: the pages of other framings have other coordinates."""
    where = unchanged.reading.where
    if where is None:
        return None
    return {path: spots for path, spots in where.items() if unchanged.keys.get(path) == chosen.get(path)}


def _candidates(
    fields: Mapping[str, Any], chosen: Mapping[str, str], surest: Mapping[str, _Ballot], ballots: Sequence[_Ballot]
) -> dict[str, list[Any]]:
    """What other framings read in place of each single value, then what other beams of its framing had."""
    differing = (
        {name: value for name, value in ballot.reading.fields.items() if ballot.keys[name] != chosen.get(name)}
        for ballot in ballots
    )
    others = other_values(fields, differing)
    for name, ballot in surest.items():
        for path, values in ballot.reading.candidates.items():
            if path == name or path.startswith(f"{name}."):
                known = others.setdefault(path, [])
                known += [value for value in values if value not in known][: MOST_CANDIDATES - len(known)]
    return others
