"""What the data state: media, samples, predictions. Frozen, and free of torch.

What the model is shown of a sample is a `Conversation` (core/conversation.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

MediaKind = Literal["image", "video", "audio"]
Role = Literal["system", "user", "assistant"]
RawScores = Mapping[str, Mapping[str, float]]  # path of a value (`total`, `items.0.price`) -> score by name
Position = tuple[int, int]  # (turn, character of its text before which a file stands)
Box = tuple[int, int, int, int]  # left, top, right, bottom in thousandths of an upright page


@dataclass(frozen=True, slots=True)
class Media:
    """One image, video or recording: a file, or bytes that came inside the row (a data URI)."""

    kind: MediaKind
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    span: tuple[float, float] | None = None  # seconds, for videos and recordings
    page: int | None = None  # from 0, for documents with pages
    views: tuple[Path, ...] = ()  # of one scene, `path` the first: stitched into one image
    framing: int = 0  # of an image: index into `media.framing.FRAMINGS` and `media.reflow.SETTINGS`

    def __post_init__(self) -> None:
        """A path may be given as text."""
        if isinstance(self.path, str):
            object.__setattr__(self, "path", Path(self.path))

    def describe(self) -> str:
        """How messages name it."""
        return str(self.path) if self.path is not None else f"inline {self.kind} ({len(self.data or b'')} bytes)"


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn before the question; the question and its answer are fields of the sample."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled (or, for prediction, unlabelled) item, as the data state it.

    A layout fills `fields` for extraction, `prompt` and `answer` for conversations. A task turns the sample into the
    conversation that the model is shown (`tasks.Task.phrase`).
    """

    id: str
    media: tuple[Media, ...] = ()  # of the earlier turns and of the question, in order of appearance
    prompt: str = ""
    answer: str | None = None
    options: tuple[str, ...] = ()  # of a multiple-choice question: part of what is asked, not of the label
    fields: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Turn, ...] = ()
    system: str | None = None  # None: the checkpoint's own system text
    group: str | None = None  # samples of one group never lie on both sides of a split
    split: str | None = None  # the split named by the data itself, if it names one
    source: str = ""  # "file:row", for messages and the ledger
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what else the layout knows (ocr, speaker)
    positions: tuple[Position, ...] = ()  # where each of `media` stands; empty: all before the first question
    answers: tuple[str, ...] = ()  # all answers that count as right, where annotators gave several; `answer` is learned

    @property
    def modality(self) -> str:
        """The kinds of its media, such as `image` or `audio+image`; `text` where it has none."""
        return modality_of(self.media)

    def unlabelled(self) -> Sample:
        """A copy that holds no trace of the right answer; prediction works on such copies only."""
        return replace(self, answer=None, answers=(), fields={}, extra={}, group=None)


def modality_of(media: tuple[Media, ...]) -> str:
    """The kinds of media in order of name, joined by `+`; `text` where there are none."""
    return "+".join(sorted({item.kind for item in media})) or "text"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a line of a value stands."""

    page: int  # index among the images and pages of the sample
    box: Box
    source: Literal["text layer", "attention"]

    def row(self) -> dict[str, Any]:
        """Plain values."""
        return {"page": self.page, "box": list(self.box), "source": self.source}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Location:
        """The inverse of `row`."""
        left, top, right, bottom = row["box"]
        return cls(row["page"], (left, top, right, bottom), row["source"])


Where = Mapping[str, tuple[Location, ...]]  # by path of the value, a location per line; none: nothing supports it


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's reply to one sample."""

    id: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    confidence: Mapping[str, float] = field(
        default_factory=dict
    )  # 0..1 by value, calibrated; empty without calibration
    seconds: float = 0.0
    problem: str | None = None  # why `fields` could not be read from `text`, if so
    cut: bool = False  # the reply hit the token limit
    raw: RawScores = field(default_factory=dict)  # what the model's own probabilities say of each value
    accept: Mapping[str, bool] | None = None  # by value; None where nothing is promised
    where: Where | None = None  # None: not asked for, or the model's attention cannot be mapped to its pages
    candidates: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # by value, what other beams have instead

    def likelihood(self, name: str) -> float | None:
        """By which values of one run are sorted: the calibrated confidence, else the model's mean probability."""
        raw = self.raw.get(name)
        return self.confidence.get(name, raw["mean"] if raw else None)

    def row(self) -> dict[str, Any]:
        """The JSON row written to predictions.jsonl."""
        row: dict[str, Any] = {
            "id": self.id,
            "fields": dict(self.fields),
        }
        confidence = self.confidence or {name: scores["mean"] for name, scores in self.raw.items()}
        if confidence:
            row["confidence"] = {name: round(value, 4) for name, value in confidence.items()}
        if confidence and not self.confidence:
            row["calibrated"] = False
        if self.accept is not None:
            row["accept"] = dict(self.accept)
        if self.where is not None:
            row["where"] = {path: [each.row() for each in locations] for path, locations in self.where.items()}
        row["raw"] = {name: dict(scores) for name, scores in self.raw.items()}
        if self.candidates:
            row["candidates"] = {name: list(values) for name, values in self.candidates.items()}
        row |= {"text": self.text, "seconds": round(self.seconds, 4)}
        if self.problem:
            row["problem"] = self.problem
        if self.cut:
            row["cut"] = True
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prediction:
        """The inverse of `row`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: for a row of another shape.
        """
        confidence = (row.get("confidence") if row.get("calibrated", True) else None) or {}
        raw = row.get("raw") or {}
        for number in (*confidence.values(), *(scores["mean"] for scores in raw.values())):
            float(number)
        return cls(
            id=str(row["id"]),
            text=str(row["text"]),
            fields=dict(row.get("fields") or {}),
            confidence=confidence,
            seconds=float(row.get("seconds", 0.0)),
            problem=row.get("problem"),
            cut=bool(row.get("cut", False)),
            raw=raw,
            accept=row.get("accept"),
            where=_where_of(row.get("where")),
            candidates=row.get("candidates") or {},
        )


def _where_of(row: Mapping[str, Any] | None) -> Where | None:
    if row is None:
        return None
    return {path: tuple(map(Location.from_row, locations)) for path, locations in row.items()}
