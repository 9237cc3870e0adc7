"""Files inside a request: data addresses, base64 recordings and PDFs, within limits. No path is ever opened."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, MediaKind
from mllm_tailor.media.audio import AudioLimits, read_audio
from mllm_tailor.media.open import image_size, page_count
from mllm_tailor.media.source import ImageLimits, decode_data_uri
from mllm_tailor.media.video import VideoLimits, read_video
from mllm_tailor.serving.errors import ApiError, refused
from mllm_tailor.serving.remote import fetch
from mllm_tailor.serving.settings import ServeLimits

DETAILS = (None, "auto", "high")  # images are read at the size the model was tuned at
AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "m4a", "aac")


@dataclass
class MediaIntake:
    """Reads the files of one request and keeps count of what they cost."""

    limits: ServeLimits
    allowed_hosts: frozenset[str] = frozenset()
    count: int = 0
    pixels: int = 0

    def image(self, url: Any, param: str) -> tuple[Media, ...]:
        """An image, or the pages of a document, from a data address (or an allowed host)."""
        data = self._bytes(url, param)
        return self._pages(data, param)

    def document(self, data: Any, param: str) -> tuple[Media, ...]:
        """The pages of a PDF given as a data address or as plain base64; images are taken, too."""
        if not isinstance(data, str):
            raise refused(param, "should be base64, or a data: address")
        return self._pages(self._bytes(data, param) if ":" in data[:16] else _base64(data, param), param)

    def audio(self, data: Any, kind: Any, param: str) -> tuple[Media, ...]:
        """A recording in base64."""
        if kind is not None and kind not in AUDIO_FORMATS:
            raise refused(f"{param}.format", f"one of {', '.join(AUDIO_FORMATS)}")
        if not isinstance(data, str):
            raise refused(f"{param}.data", "should be base64")
        raw = _data_uri(data, param) if _is_data_uri(data) else _base64(data, f"{param}.data")
        return (self._timed("audio", raw, param),)

    def video(self, url: Any, param: str) -> tuple[Media, ...]:
        """A video from a data address."""
        return (self._timed("video", self._bytes(url, param), param),)

    def raw(self, data: bytes, param: str) -> tuple[Media, ...]:
        """An image or document that came as a file of a form."""
        return self._pages(data, param)

    def _bytes(self, url: Any, param: str) -> bytes:
        if not isinstance(url, str):
            raise refused(param, "should be a data: address")
        if _is_data_uri(url):
            return _data_uri(url, param)
        try:
            return fetch(url, self.allowed_hosts, self.limits.body_bytes)
        except ApiError as error:
            raise ApiError(error.status, f"{param}: {error.message}", param=param, code=error.code) from None

    def _pages(self, data: bytes, param: str) -> tuple[Media, ...]:
        limits = ImageLimits(bytes=self.limits.body_bytes, pixels=self.limits.pixels)
        whole = Media("image", data=data)
        try:
            count = page_count(whole, limits)
            if count > self.limits.pages:
                raise ApiError(413, f"`{param}`: {count:,} pages, over the limit of {self.limits.pages}", param=param)
            pages = (whole,) if count == 1 else tuple(Media("image", data=data, page=page) for page in range(count))
            self._add(len(pages), param)
            for page in pages:
                width, height = image_size(page, limits)
                self.pixels += width * height
        except DataError as error:
            raise ApiError(400, f"`{param}`: {error}", param=param, code="unreadable_file") from None
        if self.pixels > self.limits.pixels:
            raise ApiError(
                413, f"`{param}`: {self.pixels:,} pixels in all, over the limit of {self.limits.pixels:,}", param=param
            )
        return pages

    def _timed(self, kind: MediaKind, data: bytes, param: str) -> Media:
        media = Media(kind, data=data)
        self._add(1, param)
        try:  # decoded here once for its length and its faults
            if kind == "audio":
                read_audio(media, limits=AudioLimits(bytes=self.limits.body_bytes, seconds=self.limits.seconds))
            else:
                limits = VideoLimits(
                    bytes=self.limits.body_bytes, pixels=self.limits.pixels, seconds=self.limits.seconds
                )
                read_video(media, 1, limits=limits)
        except DataError as error:
            raise ApiError(400, f"`{param}`: {error}", param=param, code="unreadable_file") from None
        return media

    def _add(self, count: int, param: str) -> None:
        self.count += count
        if self.count > self.limits.media:
            raise ApiError(
                413, f"`{param}`: over {self.limits.media} images and recordings in one request", param=param
            )


def _is_data_uri(text: str) -> bool:
    return text[:5].lower() == "data:"


def _data_uri(text: str, param: str) -> bytes:
    try:
        return decode_data_uri("data:" + text[5:], param)
    except DataError as error:
        raise ApiError(400, str(error), param=param) from None


def _base64(text: str, param: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"`{param}`: damaged base64", param=param) from None


def part_value(part: Mapping[str, Any], key: str, inner: str, where: str) -> Any:
    """`part[key]` itself, or `part[key][inner]` where it is an object, as the two of OpenAI's endpoints write it."""
    value = part.get(key)
    if isinstance(value, Mapping):
        detail = value.get("detail")
        if detail not in DETAILS:
            raise refused(f"{where}.{key}.detail", "images are read at the size the model was tuned at — auto or high")
        return value.get(inner)
    if part.get("detail") not in DETAILS:
        raise refused(f"{where}.detail", "images are read at the size the model was tuned at — auto or high")
    return value
