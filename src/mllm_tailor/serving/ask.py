"""What a request asks, in one form for all endpoints: messages, the form of the reply, and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_tailor.core.sample import Media, Position, Role, Sample, Turn
from mllm_tailor.serving.errors import ApiError, refused
from mllm_tailor.serving.intake import MediaIntake, part_value

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "function": "user",
}
OWN_SCHEMA = {"type": "own"}  # `json_object`: the schema of the run


@dataclass(frozen=True)
class AskedMessage:
    """A message of the request: its words, and media each before a character of them."""

    role: Role
    text: str
    media: tuple[tuple[int, Media], ...] = ()


@dataclass(frozen=True)
class Ask:
    """What a request asks, in the same form for every endpoint and client."""

    model: str
    messages: tuple[AskedMessage, ...]
    schema: Mapping[str, Any] | None = None  # of the reply; OWN_SCHEMA: the run's
    schema_param: str = "response_format"  # how errors name it
    tool: str | None = None  # the reply is the argument of this function
    limit: int | None = None
    logprobs: bool = False
    stream: bool = False
    include_usage: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> tuple[Media, ...]:
        """All files in order."""
        return tuple(media for message in self.messages for _, media in message.media)

    @property
    def system(self) -> str:
        """The words of all system messages."""
        return "\n".join(message.text for message in self.messages if message.role == "system").strip()

    @property
    def question(self) -> str:
        """The words of the last user message."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "").strip()


def read_messages(messages: Any, intake: MediaIntake, param: str = "messages") -> tuple[AskedMessage, ...]:
    """The messages of a request with their files read.

    Raises:
        ApiError: naming the message and the part that cannot be read.
    """
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, f"`{param}`: at least one message is needed", param=param)
    if len(messages) > intake.limits.messages:
        raise ApiError(413, f"`{param}`: over the limit of {intake.limits.messages} messages", param=param)
    read = tuple(_message(message, intake, f"{param}[{index}]") for index, message in enumerate(messages))
    if sum(len(message.text) for message in read) > intake.limits.text:
        raise ApiError(413, f"`{param}`: over the limit of {intake.limits.text:,} characters", param=param)
    return read


def _message(message: Any, intake: MediaIntake, where: str) -> AskedMessage:
    if not isinstance(message, Mapping):
        raise ApiError(400, f"`{where}`: a message is an object", param=where)
    role = ROLES.get(str(message.get("role")))
    if role is None:
        raise refused(f"{where}.role", f"one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None:  # of an assistant that called a tool
        return AskedMessage(role, "")
    if isinstance(content, str):
        return AskedMessage(role, content)
    if not isinstance(content, list):
        raise ApiError(400, f"`{where}.content`: text, or a list of parts", param=f"{where}.content")
    text, placed = "", []
    for index, part in enumerate(content):
        piece = _part(part, intake, f"{where}.content[{index}]")
        if isinstance(piece, str):
            text += piece
        else:
            placed += [(len(text), media) for media in piece]
    return AskedMessage(role, text, tuple(placed))


def _part(part: Any, intake: MediaIntake, where: str) -> str | tuple[Media, ...]:
    if not isinstance(part, Mapping):
        raise ApiError(400, f"`{where}`: a part is an object with a `type`", param=where)
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text"):
        if not isinstance(part.get("text"), str):
            raise ApiError(400, f"`{where}.text`: should be text", param=f"{where}.text")
        return str(part["text"])
    if kind in ("image_url", "input_image"):
        _refuse_ids(part, where)
        return intake.image(part_value(part, "image_url", "url", where), f"{where}.image_url")
    if kind == "video_url":
        return intake.video(part_value(part, "video_url", "url", where), f"{where}.video_url")
    if kind == "input_audio":
        audio = part.get("input_audio")
        if not isinstance(audio, Mapping):
            raise ApiError(400, f"`{where}.input_audio`: an object with `data` and `format`", param=where)
        return intake.audio(audio.get("data"), audio.get("format"), f"{where}.input_audio")
    if kind in ("file", "input_file"):
        file = part.get("file") if kind == "file" else part
        if not isinstance(file, Mapping):
            raise ApiError(400, f"`{where}.file`: an object with `file_data`", param=where)
        _refuse_ids(file, where)
        return intake.document(file.get("file_data"), f"{where}.file_data")
    raise refused(f"{where}.type", "one of text, image_url, video_url, input_audio, file")


def _refuse_ids(part: Mapping[str, Any], where: str) -> None:
    for name in ("file_id", "file_url"):
        if part.get(name) is not None:
            raise refused(f"{where}.{name}", "files come inside the request, as base64")


def as_sample(ask: Ask) -> Sample:
    """The request as a sample in its own words: earlier messages are its history, files stand where they stood.

    Raises:
        ApiError: when the last message is not the user's.
    """
    messages = list(ask.messages)
    system = None
    while messages and messages[0].role == "system":
        system = messages[0].text if system is None else f"{system}\n{messages[0].text}"
        messages.pop(0)
    if not messages or messages[-1].role != "user":
        raise ApiError(400, "`messages`: the last message should be the user's", param="messages")
    positions: list[Position] = [
        (turn, at) for turn, message in enumerate(messages) for at, _ in message.media if message.role == "user"
    ]
    if len(positions) != len(ask.media):
        raise refused("messages", "images and recordings belong into messages of the user")
    *earlier, question = messages
    return Sample(
        "request",
        media=ask.media,
        prompt=question.text,
        history=tuple(Turn(message.role, message.text) for message in earlier),
        system=system,
        positions=tuple(positions),
    )


def document_sample(media: Sequence[Media], system: str | None = None) -> Sample:
    """Files without a question: the task asks its own."""
    return Sample("request", media=tuple(media), system=system)
