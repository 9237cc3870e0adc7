"""Boxes in texts, `<box>[[left, top, right, bottom]]</box>` in thousandths of an image, moved with the image.

A box is of the image whose number stands before it, counted from 1 (`Image-2: <box>…</box>`), else of the last image
before it in the conversation. Points, `[x, y]`, are moved too, and so are Qwen-VL's boxes,
`<box>(left,top),(right,bottom)</box>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mllm_tailor.core.conversation import Conversation, Exchange, Message
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media

FULL = 1000  # the width and height of an image
IMAGE = "image"  # of labels and replies, beside a box: which of several images it is of, from 0
Box = tuple[float, float, float, float]  # left, top, right, bottom in thousandths
Move = Callable[[Box], Box]


class PageView(Protocol):
    """What a model is shown of a page, and the way back to the page."""

    straight_lines: bool  # what it shows is single lines of print, as they were found on the page

    def to_page(self, box: Box) -> list[Box]:
        """The boxes on the page of what a box of the view shows, all in thousandths; none for nothing of the page."""
        ...


@dataclass(frozen=True)
class Cropped:
    """A part of a page: `box` (pixels) of an image of `size` (width, height)."""

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    straight_lines = False

    def to_page(self, box: Box) -> list[Box]:
        """The one box on the page."""
        return [uncropped(self.box, self.size)(box)]

    def from_page(self, box: Box) -> Box:
        """A box of the page on the part."""
        return cropped(self.box, self.size)(box)


def enclosing(boxes: Sequence[Box]) -> Box:
    """The smallest box round several."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


_BOXES = re.compile(r"<box>.*?</box>", re.DOTALL)
_NUMBER = r"-?\d+(?:\.\d+)?"
_NUMBERS = re.compile(rf"\[\s*({_NUMBER}(?:\s*,\s*{_NUMBER}){{1,3}})\s*\]")
_PAIRS = re.compile(rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)\s*,\s*\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")
# Boxes that follow each other, with the number of their image where it is stated.
_MARKED = re.compile(r"(?:\bImage-(\d{1,3})\s*:?\s*)?(?:<ref>[^<]*</ref>\s*)?(?:<box>.*?</box>\s*)+", re.DOTALL)
# Boxes of other models, in units of their own, that cannot be moved.
FOREIGN = re.compile(r"bbox_2d|<loc_?\d+>|<\|box_start\|>|<(?:bounding_)?bbox>|<quad>")


def cropped(box: Sequence[float], size: tuple[int, int]) -> Move:
    """How boxes move when `box` (pixels) is cut out of an image of `size` (width, height)."""
    left, top, right, bottom = box
    width, height = size

    def move(region: Box) -> Box:
        x = [(value / FULL * width - left) / (right - left) * FULL for value in region[0::2]]
        y = [(value / FULL * height - top) / (bottom - top) * FULL for value in region[1::2]]
        return x[0], y[0], x[1], y[1]

    return move


def uncropped(box: Sequence[float], size: tuple[int, int]) -> Move:
    """The inverse of `cropped`: from the part that was cut out to the whole image."""
    left, top, right, bottom = box
    width, height = size

    def move(region: Box) -> Box:
        x = [(value / FULL * (right - left) + left) / width * FULL for value in region[0::2]]
        y = [(value / FULL * (bottom - top) + top) / height * FULL for value in region[1::2]]
        return x[0], y[0], x[1], y[1]

    return move


def move_value(value: Any, move: Move) -> Any:
    """A box, a point `[x, y]`, or a list of them (an outline, several outlines), moved and in whole thousandths."""
    if all(isinstance(item, (int, float)) for item in value) and len(value) in (2, 4):
        return [round(item) for item in move((value[0], value[1], value[-2], value[-1]))][: len(value)]
    return [move_value(item, move) for item in value]


def has_boxes(conversation: Conversation, *, foreign: bool = False) -> bool:
    """Whether any of its texts holds a box; `foreign` ones, that cannot be moved, count where it is asked for."""
    texts = (
        *(message.text for message in conversation.messages),
        conversation.answer or "",
        *(text for exchange in conversation.further for text in exchange),
    )
    return any("<box>" in text or (foreign and FOREIGN.search(text)) for text in texts)


def image_mark(index: int) -> str:
    """What stands before a box of an image (from 0), where several are shown.

    >>> image_mark(1)
    'Image-2: '
    """
    return f"Image-{index + 1}: "


def marked_image(text: str) -> int | None:
    """The image (from 0) that the first box of a text is of, by its mark; None without a box or a mark."""
    match = next((match for match in _MARKED.finditer(text)), None)
    return int(match[1]) - 1 if match and match[1] and int(match[1]) else None


def move_text(text: str, moves: Sequence[Move | None], shown: int, name: str) -> str:
    """The text with the boxes of every image moved.

    `moves` has one for each image of the conversation, None for no change; `shown` of them stand before the text.

    Raises:
        DataError: with `name`, for a box of which nothing is left or that is of an image which is not there.
    """

    def within(boxes: re.Match[str]) -> str:
        index = int(boxes[1]) - 1 if boxes[1] else max(shown, 1) - 1
        if not 0 <= index < len(moves):
            raise DataError(f"{name}: a box is of Image-{boxes[1]}, of {len(moves)} images — correct the number")
        move = moves[index]
        return boxes[0] if move is None else _BOXES.sub(lambda box: _moved_numbers(box[0], move, name), boxes[0])

    return _MARKED.sub(within, text) if moves else text


def move_boxes(conversation: Conversation, moves: Sequence[Move | None]) -> Conversation:
    """The conversation with the boxes of every image moved; `moves` has one for each of its media, None for no change.

    Raises:
        DataError: naming the row, for a box of which nothing is left or that is of an image which is not there.
    """
    of_images = [move for move, media in zip(moves, conversation.media, strict=True) if media.kind == "image"]
    shown = 0
    messages: list[Message] = []
    for message in conversation.messages:
        content: list[str | Media] = []
        for part in message.content:
            if isinstance(part, Media):
                shown += part.kind == "image"
                content.append(part)
            else:
                content.append(move_text(part, of_images, shown, conversation.name))
        messages.append(replace(message, content=tuple(content)))
    answer = conversation.answer
    answer = None if answer is None else move_text(answer, of_images, shown, conversation.name)
    further = tuple(
        Exchange(*(move_text(text, of_images, shown, conversation.name) for text in exchange))
        for exchange in conversation.further
    )
    return replace(conversation, messages=tuple(messages), answer=answer, further=further)


def _moved_numbers(text: str, move: Move, name: str) -> str:
    text = _NUMBERS.sub(lambda match: _moved(match[1], move, name), text)

    def pair(match: re.Match[str]) -> str:
        left, top, right, bottom = _moved(",".join(match.groups()), move, name)[1:-1].split(", ")
        return f"({left},{top}),({right},{bottom})"

    return _PAIRS.sub(pair, text)


def _moved(numbers: str, move: Move, name: str) -> str:
    """The numbers of one box or point, moved and cut off at the edges of the image."""
    values = [float(value) for value in numbers.split(",")]
    if len(values) == 3:
        return f"[{numbers}]"
    point = len(values) == 2
    region = move((values[0], values[1], values[-2], values[-1]))
    left, top, right, bottom = (min(FULL, max(0, round(value))) for value in region)
    outside = not all(0 <= value <= FULL for value in region[:2]) if point else left >= right or top >= bottom
    if outside:
        raise DataError(
            f"{name}: the box [{numbers}] lies in a margin that model.trim cuts off — set model.trim: false, or leave "
            "the row out"
        )
    return f"[{left}, {top}]" if point else f"[{left}, {top}, {right}, {bottom}]"
