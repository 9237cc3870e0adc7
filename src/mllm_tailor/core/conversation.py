"""What the model is shown of a sample: messages with every image, video and recording in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from mllm_tailor.core.sample import Media, Role, Sample, modality_of

Content = tuple[str | Media, ...]  # texts and media in the order in which they are shown


@dataclass(frozen=True, slots=True)
class Message:
    """One message up to the question: who, and what in which order."""

    role: Role
    content: Content

    @property
    def text(self) -> str:
        """Its words, without media."""
        return "".join(part for part in self.content if isinstance(part, str))


class Exchange(NamedTuple):
    """A further question about what was shown before, and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages up to a question and the answer to it; this and the answers to further questions alone carry loss.

    `sample` is what the data state of it; of an unlabelled conversation it is unlabelled too.
    """

    sample: Sample
    messages: tuple[Message, ...]  # the last one is the question; a system message may stand anywhere before it
    answer: str | None = None
    system: str | None = None  # None: the checkpoint's own system text, unless the first message is of the system
    further: tuple[Exchange, ...] = ()  # asked after the answer, in training alone: they share the pass over the media

    @property
    def id(self) -> str:
        """The sample's id."""
        return self.sample.id

    @property
    def source(self) -> str:
        """Where the sample was read, as "file:row"."""
        return self.sample.source

    @property
    def name(self) -> str:
        """How messages name it: where it was read, else its id."""
        return self.source or self.id

    @property
    def group(self) -> str | None:
        """The sample's group."""
        return self.sample.group

    @property
    def media(self) -> tuple[Media, ...]:
        """All media in the order in which they are shown."""
        return tuple(part for message in self.messages for part in message.content if isinstance(part, Media))

    @property
    def modality(self) -> str:
        """The kinds of its media, such as `image` or `audio+image`; `text` where it has none."""
        return modality_of(self.media)

    @property
    def prompt(self) -> str:
        """The words of the question."""
        return self.messages[-1].text

    def unlabelled(self) -> Conversation:
        """A copy that holds no trace of the right answer."""
        return replace(self, sample=self.sample.unlabelled(), answer=None, further=())

    def with_media(self, media: Sequence[Media]) -> Conversation:
        """A copy with each of `self.media` exchanged for another, in order."""
        remaining = iter(media)
        messages = tuple(
            replace(
                message,
                content=tuple(part if isinstance(part, str) else next(remaining) for part in message.content),
            )
            for message in self.messages
        )
        return replace(self, messages=messages)


def messages_of(sample: Sample) -> tuple[Message, ...]:
    """The sample's earlier turns and its question, with its media in their places."""
    turns = [*((turn.role, turn.text) for turn in sample.history), ("user", sample.prompt)]
    first = next(index for index, (role, _) in enumerate(turns) if role == "user")
    positions = sample.positions or ((first, 0),) * len(sample.media)
    placed = sorted(zip(positions, sample.media, strict=True), key=lambda item: item[0])
    return tuple(
        Message(role, tuple(_content(text, [(at, media) for (turn, at), media in placed if turn == index])))
        for index, (role, text) in enumerate(turns)
    )


def _content(text: str, placed: Sequence[tuple[int, Media]]) -> Iterator[str | Media]:
    begin = 0
    for at, media in placed:
        if at > begin:
            yield text[begin:at]
        yield media
        begin = at
    if text[begin:] or not placed:
        yield text[begin:]


def as_conversation(item: Sample | Conversation) -> Conversation:
    """A conversation as it is; a sample as the data state it, asked in its own words and answered by its answer."""
    if isinstance(item, Conversation):
        return item
    return Conversation(item, messages_of(item), item.answer, item.system)


def asked(
    sample: Sample, wording: str, answer: str | None, values: Mapping[str, str] = MappingProxyType({})
) -> Conversation:
    """The sample with its question put into a task's words.

    `{question}` in the wording stands for the sample's own question with the media in it; without it only the media of
    the question are kept. Media that begin the question are shown before the wording. `values` fill the other names in
    braces; what they hold is not searched for further names.
    """
    *earlier, question = messages_of(sample)
    content = list(question.content)
    leading = next((index for index, part in enumerate(content) if isinstance(part, str)), len(content))
    shown, rest = content[:leading], content[leading:]
    if "{question}" not in wording:
        shown, rest = [part for part in content if isinstance(part, Media)], []
    names = "|".join(map(re.escape, ("question", *values)))
    pieces: list[str | Media] = []
    for index, words in enumerate(re.split(rf"\{{({names})\}}", wording)):  # every second piece is a name
        pieces += [words] if index % 2 == 0 else rest if words == "question" else [values[words]]
    joined = tuple(_joined([*shown, *pieces]))
    return Conversation(sample, (*earlier, Message("user", joined)), answer, sample.system)


def _joined(parts: Sequence[str | Media]) -> Iterator[str | Media]:
    """The parts with neighbouring texts joined and empty ones left out (unless there is nothing else)."""
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield text
        yield part
        text = ""
    if text or not any(isinstance(part, Media) for part in parts):
        yield text
