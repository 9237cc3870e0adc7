"""Conversations into samples: one for each answer that is learned, with every file in its turn and place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, MediaKind, Position, Role, Sample, Turn
from mllm_tailor.data.columns import SPLIT_COLUMNS, default_id, group_key, read_id
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row

MARKERS: dict[str, MediaKind] = {
    "<image>": "image",
    "<video>": "video",
    "<audio>": "audio",
    "<sound>": "audio",
    "<speech>": "audio",
}
_MARKER = re.compile(f"({'|'.join(MARKERS)})\n?")  # templates write the line break after a file
_NUMBERED = re.compile(r"<(image|video|audio)[ _-]?(\d{1,2})>")
File = tuple[Media, ...]  # what one name stands for: a document has several pages


@dataclass(frozen=True)
class Slot:
    """A place for a file that is named beside the conversation: a marker in a text, or a part without a path."""

    kind: MediaKind
    marker: bool = True


Part = str | Slot | Media


@dataclass(frozen=True)
class Said:
    """One message of a row: who, what in which order, and whether an answer is learned or only context."""

    role: Role
    parts: tuple[Part, ...]
    learned: bool = True

    @property
    def media(self) -> tuple[Media, ...]:
        """The files it names itself."""
        return tuple(part for part in self.parts if isinstance(part, Media))


def parts_of(text: str) -> list[Part]:
    """A text cut at its file markers.

    >>> parts_of("Compare <image>\\nwith <image>.")
    ['Compare ', Slot(kind='image', marker=True), 'with ', Slot(kind='image', marker=True), '.']
    """
    pieces = _MARKER.split(text)
    parts: list[Part] = [Slot(MARKERS[piece]) if index % 2 else piece for index, piece in enumerate(pieces)]
    return [part for part in parts if part != ""]


def unnumbered(texts: Sequence[str], kinds: Sequence[MediaKind]) -> list[str]:
    """The texts with `<image 1>`, `<image_2>`, … as plain markers, where these name all files, once each and in order.

    >>> unnumbered(["Compare <image 1> with <image_2>."], ["image", "image"])
    ['Compare <image> with <image>.']
    """
    marks = [(match[1], int(match[2])) for text in texts for match in _NUMBERED.finditer(text)]
    in_order = all(
        number == [kind for kind, _ in marks[: index + 1]].count(marks[index][0])
        for index, (_, number) in enumerate(marks)
    )
    if not marks or not in_order or sorted(kind for kind, _ in marks) != sorted(kinds):
        return list(texts)
    return [_NUMBERED.sub(lambda match: f"<{match[1]}>", text) for text in texts]


def conversation_samples(
    said: Sequence[Said], beside: Sequence[File], row: Row, extra: dict[str, Any] | None = None
) -> Iterator[Sample | DataIssue]:
    """The samples of one row; `beside` are files named beside the conversation, which fill its slots in order.

    Without slots, they stand before the first question. All samples of a conversation share a group, so that none of
    its turns is held out while another is trained on. `extra` holds the row's other columns.

    Raises:
        DataError: when roles do not alternate or slots and files do not agree.
    """
    _check_order(said, row.source)
    messages = _placed(said, beside, row.source)
    questions = [message for message in messages if message.role == "user"]
    if messages[-1].role == "assistant" and messages[-1].media:
        raise DataError(f"{row.source}: the last answer holds a file, but the model writes text — take it out")
    identifier = read_id(row.values.get("id"), row.source)
    if identifier is None:
        identifier = default_id(tuple(media for message in messages for media in message.media), row.source)
    several = len(questions) > 1
    split = next((value for name in SPLIT_COLUMNS if isinstance(value := row.values.get(name), str) and value), None)
    system, rest = _system(messages)
    before = _Before()
    number = 0
    for index, message in enumerate(rest):
        if message.role != "user":
            before.add(message)
            continue
        number += 1
        reply = rest[index + 1] if index + 1 < len(rest) else None
        answer = None if reply is None else reply.text
        if reply is None or reply.learned:
            media, positions = before.with_question(message)
            yield Sample(
                id=f"{identifier}-{number}" if several else identifier,
                media=media,
                prompt=message.text,
                answer=answer,
                history=tuple(before.turns),
                system=system,
                group=group_key(row.values.get("group")) or (identifier if several else None),
                split=split or row.split,
                source=row.source,
                extra=extra or {},
                positions=positions,
            )
        before.add(message)
    if not any(message.learned for message in rest if message.role == "assistant") and len(rest) > 1:
        problem = "no answer of this conversation is learned, by its weights"
        yield DataIssue(row.source, problem, "leave the row out, or give an answer the weight 1", None, "warning")


@dataclass(frozen=True)
class _Message:
    """A message whose files are found: its words, and the files with the characters before which they stand."""

    role: Role
    text: str
    files: tuple[tuple[int, Media], ...] = ()
    learned: bool = True

    @property
    def media(self) -> tuple[Media, ...]:
        return tuple(media for _, media in self.files)


@dataclass
class _Before:
    """What was said before a question."""

    turns: list[Turn] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)

    def add(self, message: _Message) -> None:
        self.media += message.media
        self.positions += [(len(self.turns), at) for at, _ in message.files]
        self.turns.append(Turn(message.role, message.text))

    def with_question(self, question: _Message) -> tuple[tuple[Media, ...], tuple[Position, ...]]:
        """All media and their positions; none where all stand before the first question, as `Sample` has it."""
        positions = (*self.positions, *((len(self.turns), at) for at, _ in question.files))
        first = next((index for index, turn in enumerate(self.turns) if turn.role == "user"), len(self.turns))
        usual = all(position == (first, 0) for position in positions)
        return (*self.media, *question.media), () if usual else positions


def _system(messages: Sequence[_Message]) -> tuple[str | None, Sequence[_Message]]:
    """The system text at the head, its messages joined, and the other messages.

    Where a file stands in it, or a system message stands in the middle, it stays a message in its place.
    """
    head = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    if not head or any(message.files for message in messages[:head]):
        return None, messages
    return "\n\n".join(message.text for message in messages[:head]), messages[head:]


def _placed(said: Sequence[Said], beside: Sequence[File], source: str) -> list[_Message]:
    """The messages with every file in its place; a file that a part and the row both name is one."""
    own = {media for message in said for media in message.media}
    files = [file for file in beside if not own.issuperset(file)]
    waiting = {kind: [file for file in files if file[0].kind == kind] for kind in MARKERS.values()}
    if not files:  # then markers can only stand for the files that parts of the same message name
        said = [replace(message, parts=tuple(_own_slots_filled(message))) for message in said]
    if not any(isinstance(part, Slot) for message in said for part in message.parts):
        said = _with_numbered_slots(said, [file[0].kind for file in files])
    said = _with_image_marks_of_videos(said, waiting)
    slots = [part for message in said for part in message.parts if isinstance(part, Slot)]
    for marker, kind in MARKERS.items():
        count = sum(slot.kind == kind for slot in slots)
        if count and count != len(waiting[kind]):
            name = f"{marker} markers" if all(slot.marker for slot in slots) else f"{kind} parts without a path"
            raise DataError(
                f"{source}: {count} {name} but {len(waiting[kind])} {kind} files in `{kind}s` — make them agree"
            )
    kinds = {slot.kind for slot in slots}
    front = [media for file in files if file[0].kind not in kinds for media in file]
    messages = []
    for message in said:
        parts: list[str | Media] = []
        if message.role == "user":
            parts, front = [*front], []
        for part in message.parts:
            parts += waiting[part.kind].pop(0) if isinstance(part, Slot) else [part]
        messages.append(_message(message, parts))
    return messages


def _with_image_marks_of_videos(said: Sequence[Said], waiting: Mapping[MediaKind, Sequence[File]]) -> Sequence[Said]:
    """The messages with slots of videos where `<image>` stands for each of the row's videos (LLaVA-Video's rows)."""
    slots = [part for message in said for part in message.parts if isinstance(part, Slot)]
    all_images = all(slot.kind == "image" and slot.marker for slot in slots)
    if not all_images or waiting["image"] or len(slots) != len(waiting["video"]):
        return said
    video = Slot("video")
    return [
        replace(message, parts=tuple(video if isinstance(part, Slot) else part for part in message.parts))
        for message in said
    ]


def _with_numbered_slots(said: Sequence[Said], kinds: Sequence[MediaKind]) -> list[Said]:
    """The messages with slots where `<image 1>` and its like stand, if there is one for each file."""
    texts = iter(unnumbered([part for message in said for part in message.parts if isinstance(part, str)], kinds))
    return [
        replace(
            message,
            parts=tuple(
                new for part in message.parts for new in (parts_of(next(texts)) if isinstance(part, str) else [part])
            ),
        )
        for message in said
    ]


def _own_slots_filled(message: Said) -> list[Part]:
    """The parts with the message's own files at its markers, where it has as many of each kind."""
    kinds = [part.kind for part in message.parts if isinstance(part, Slot)]
    if not kinds or sorted(kinds) != sorted(media.kind for media in message.media):
        return list(message.parts)
    files = {kind: [media for media in message.media if media.kind == kind] for kind in kinds}
    rest = (part for part in message.parts if not isinstance(part, Media))
    return [files[part.kind].pop(0) if isinstance(part, Slot) else part for part in rest]


def _message(said: Said, parts: Iterable[str | Media]) -> _Message:
    text = ""
    files: list[tuple[int, Media]] = []
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            files.append((len(text), part))
    if said.role == "assistant" and not files:  # an answer is learned as it stands
        return _Message(said.role, text, (), said.learned)
    left = len(text) - len(text.lstrip())
    text = text.strip() if not files or files[-1][0] < len(text.rstrip()) else text.lstrip()
    return _Message(said.role, text, tuple((max(0, at - left), media) for at, media in files), said.learned)


def _check_order(said: Sequence[Said], source: str) -> None:
    expected: tuple[Role, Role] = ("user", "assistant")
    if all(message.role == "system" for message in said):
        raise DataError(f"{source}: the conversation is empty — add a question and an answer, or remove this row")
    turn = 0
    for number, message in enumerate(said, 1):
        if message.role == "system":
            if turn % 2:
                raise DataError(
                    f"{source}: message {number} is of the system between a question and its answer — put it before "
                    "the question"
                )
            continue
        if message.role != expected[turn % 2]:
            raise DataError(
                f"{source}: message {number} is from the {message.role} where the {expected[turn % 2]} should speak"
                " — user and assistant take turns, the user first"
            )
        turn += 1
