"""Ask any OpenAI-compatible endpoint what a run's model is asked."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from mllm_tailor.core.conversation import Conversation, Message
from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.sample import Media
from mllm_tailor.media.image import is_shown_as_stored
from mllm_tailor.media.open import open_image

PLAIN = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}
SOUND = (".wav", ".mp3")
SECONDS = 600.0  # for one reply
# What an endpoint may not know is left out, one after the other, until it answers.
OPTIONAL = ("logprobs", "response_format", "temperature")
TRIES = 3  # of a request that was refused for lack of room


@dataclass(frozen=True)
class EndpointReply:
    """What an endpoint answered."""

    text: str
    seconds: float
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cut: bool = False
    tokens: tuple[tuple[bytes, float], ...] = ()  # with their log-probabilities, where it gives them


@dataclass
class Endpoint:
    """An OpenAI-compatible server, such as `http://localhost:8000/v1`."""

    url: str
    model: str
    key: str | None = None
    left_out: list[str] = field(default_factory=list)  # parameters it does not know

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx2.Limits(max_connections=64)
        self.client = httpx2.Client(headers=headers, timeout=SECONDS, limits=limits, follow_redirects=False)

    def close(self) -> None:
        """End its connections."""
        self.client.close()

    def ask(
        self,
        conversation: Conversation,
        *,
        system: str | None,
        schema: Mapping[str, Any] | None,
        limit: int,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> EndpointReply:
        """The reply to a conversation, greedy unless a temperature is given, in a JSON schema where one is given.

        Raises:
            RunError: when the endpoint cannot be reached or refuses the request.
            DataError: when a file of the conversation cannot be read.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": as_messages(conversation, system),
            "temperature": temperature,
            "max_tokens": limit,
            "logprobs": True,
        }
        if temperature and seed is not None:
            body["seed"] = seed
        if schema is not None:
            form = {"name": "reply", "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        while True:
            sent = {name: value for name, value in body.items() if name not in self.left_out}
            started = time.perf_counter()
            answer = self._post(sent)
            if answer.status_code == 200:
                return _reply(answer, time.perf_counter() - started)
            further = next((name for name in OPTIONAL if name in sent), None)
            if answer.status_code not in (400, 422) or further is None:
                raise RunError(f"{self.url}: status {answer.status_code}: {_message(answer)}")
            self.left_out.append(_named(answer, sent) or further)

    def _post(self, body: Mapping[str, Any]) -> httpx2.Response:
        try:
            for _ in range(TRIES):
                answer = self.client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
                if answer.status_code not in (429, 503):
                    break
                time.sleep(_pause(answer))
            return answer
        except httpx2.HTTPError as error:
            raise RunError(f"{self.url}: no answer ({type(error).__name__}) — is a server listening there?") from None


def _pause(answer: httpx2.Response) -> float:
    stated = answer.headers.get("retry-after", "1")
    return min(30.0, float(stated)) if stated.isdigit() else 1.0


def _named(answer: httpx2.Response, sent: Mapping[str, Any]) -> str | None:
    """The optional parameter that an error names."""
    message = _message(answer)
    return next((name for name in OPTIONAL if name in sent and name in message), None)


def _message(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def _reply(answer: httpx2.Response, seconds: float) -> EndpointReply:
    try:
        body = answer.json()
        choice = body["choices"][0]
        message = choice["message"]
        calls = message.get("tool_calls") or [{}]
        text = message.get("content") or calls[0].get("function", {}).get("arguments") or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise RunError(f"not the answer of an OpenAI-compatible endpoint: {answer.text[:200]}") from None
    usage = body.get("usage") or {}
    listed = (choice.get("logprobs") or {}).get("content") or []
    return EndpointReply(
        text=str(text),
        seconds=seconds,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        reply_tokens=int(usage.get("completion_tokens") or 0),
        cut=choice.get("finish_reason") == "length",
        tokens=tuple((_bytes(token), _logprob(token)) for token in listed),
    )


def _bytes(token: Mapping[str, Any]) -> bytes:
    stated = token.get("bytes")
    return bytes(stated) if stated is not None else str(token.get("token", "")).encode()


def _logprob(token: Mapping[str, Any]) -> float:
    value = float(token.get("logprob", -math.inf))
    return value if value > -9000 else -math.inf


def as_messages(conversation: Conversation, system: str | None) -> list[dict[str, Any]]:
    """A conversation as OpenAI's endpoints take it, its files inside."""
    system = conversation.system if conversation.system is not None else system
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *(_as_message(message) for message in conversation.messages)]


def _as_message(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.content):
        return {"role": message.role, "content": message.text}
    parts = [{"type": "text", "text": part} if isinstance(part, str) else _as_part(part) for part in message.content]
    return {"role": message.role, "content": parts}


def _as_part(media: Media) -> dict[str, Any]:
    if media.kind == "image":
        return {"type": "image_url", "image_url": {"url": _image_url(media)}}
    data, suffix = _whole(media)
    if media.span is not None or (media.kind == "audio" and suffix not in SOUND):
        raise DataError(f"{media.describe()}: only whole WAV and MP3 recordings and whole videos are sent — convert it")
    text = base64.b64encode(data).decode()
    if media.kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": text, "format": suffix[1:]}}
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{text}"}}


def _image_url(media: Media) -> str:
    """The file as it is where every server reads its format and shows it as we do; else its pixels as PNG."""
    data, suffix = _whole(media) if media.path is not None and not media.views else (media.data or b"", "")
    kind = PLAIN.get(suffix) or _kind_of(data)
    if kind is None or media.page is not None or media.views or not is_shown_as_stored(media):
        out = io.BytesIO()
        open_image(media).save(out, "PNG")
        data, kind = out.getvalue(), "image/png"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _kind_of(data: bytes) -> str | None:
    heads: Sequence[tuple[bytes, str]] = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))
    return next((kind for head, kind in heads if data.startswith(head)), None)


def _whole(media: Media) -> tuple[bytes, str]:
    if media.path is None:
        return media.data or b"", ".wav" if media.kind == "audio" else ".mp4"
    try:
        return Path(media.path).read_bytes(), media.path.suffix.lower()
    except OSError as error:
        raise DataError(f"{media.path}: cannot be read ({error.strerror}) — restore the file") from None
