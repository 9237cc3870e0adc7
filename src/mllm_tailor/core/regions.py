"""Boxes in texts, `<box>[[left, top, right, bottom]]</box>` in thousandths of an image, moved with the image.

A box is of the last image before it in the conversation. Points, `[x, y]`, are moved too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mllm_tailor.core.conversation import Conversation, Message
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media

FULL = 1000  # the width and height of an image
Box = tuple[float, float, float, float]  # left, top, right, bottom in thousandths
Move = Callable[[Box], Box]

_BOXES = re.compile(r"<box>.*?</box>", re.DOTALL)
_NUMBER = r"-?\d+(?:\.\d+)?"
_NUMBERS = re.compile(rf"\[\s*({_NUMBER}(?:\s*,\s*{_NUMBER}){{1,3}})\s*\]")


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


def has_boxes(conversation: Conversation) -> bool:
    """Whether any of its texts holds a box."""
    texts = (*(message.text for message in conversation.messages), conversation.answer or "")
    return any("<box>" in text for text in texts)


def move_boxes(conversation: Conversation, moves: Sequence[Move | None]) -> Conversation:
    """The conversation with the boxes of every image moved; `moves` has one for each of its media, None for no change.

    Raises:
        DataError: naming the row, for a box of which nothing is left.
    """
    index = -1
    messages: list[Message] = []

    def moved(text: str) -> str:
        move = moves[max(index, 0)] if moves else None
        if move is None:
            return text

        def within(boxes: re.Match[str]) -> str:
            return _NUMBERS.sub(lambda box: _moved(box[1], move, conversation.name), boxes[0])

        return _BOXES.sub(within, text)

    for message in conversation.messages:
        content: list[str | Media] = []
        for part in message.content:
            if isinstance(part, str):
                content.append(moved(part))
                continue
            content.append(part)
            index = index + 1
        messages.append(replace(message, content=tuple(content)))
    answer = None if conversation.answer is None else moved(conversation.answer)
    return replace(conversation, messages=tuple(messages), answer=answer)


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
