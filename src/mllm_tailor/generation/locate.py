"""Where on its pages each value of a reply stands: in the text layer of a PDF, else where the model looked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Box, Location, Media, Where
from mllm_tailor.generation.confidence import WrittenValue, values_in
from mllm_tailor.generation.prefill import Prefill
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.generation.visual_attention import visual_attention
from mllm_tailor.media.open import open_image
from mllm_tailor.media.pdf import TextLayer, page_characters
from mllm_tailor.media.source import is_pdf
from mllm_tailor.media.text_lines import nearest_line
from mllm_tailor.models.inputs.visual_tokens import TokenGrid, token_grids
from mllm_tailor.models.patches.recorded_attention import can_record
from mllm_tailor.tasks.printed import NOT_PRINTED, find_printed, letters_and_digits

SHORTEST = 20  # letters and digits of a text layer below which the page is a scan with a stamp
SUPPORT = 0.3  # attention in a window of 3 x 3 tokens, mean over a value's tokens, below which nothing supports it
LINE = 0.8  # tokens of height that two looks on one line may differ by
SHARE = 0.15  # of a value's attention that makes a line of it

Occurrence = tuple[Location, ...]  # a location per line


class Locator:
    """Finds the values of replies on their pages."""

    def __init__(self, kinds: Mapping[str, str], prefill: Prefill | None) -> None:
        """`kinds` are the types of fields and columns; `prefill` of the model that wrote the replies, if it is here."""
        self.kinds, self.prefill = kinds, prefill

    def locate(self, sequence: ReplySequence, pieces: Sequence[bytes]) -> Where | None:
        """Locations of each value of a JSON reply; None where neither way is open.

        Values of which the page's text layer, or the model's attention, shows nothing have none. A list of objects and
        an object have no entry: their values have.
        """
        values = values_in(pieces)
        inner = {path: value for path, value in values.items() if not any(_inside(other, path) for other in values)}
        layers = _text_layers(sequence.media)
        attended = _AttendedLines(sequence, self.prefill)
        result: dict[str, Occurrence] = {}
        for path, value in inner.items():
            kind = self.kinds.get(_without_rows(path), "string")
            if layers is not None and kind not in NOT_PRINTED:
                result[path] = _printed(_plain(value.text), kind, layers, attended, value)
            elif attended.possible:
                result[path] = attended.at(value) if _plain(value.text) else ()
        return result or None


def _inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")


def _without_rows(path: str) -> str:
    return ".".join(part for part in path.split(".") if not part.isdigit())


def _plain(text: str) -> str:
    """A JSON string's inner text without its escapes."""
    with suppress(ValueError):
        return str(json.loads(f'"{text}"')).strip()
    return text


def _text_layers(pages: Sequence[Media]) -> list[TextLayer] | None:
    """The text layers of a document's pages; None where a page has none."""
    layers = []
    for media in pages:
        try:
            if media.kind != "image" or media.views or not is_pdf(media):
                return None
            layers.append(page_characters(media))
        except DataError:
            return None
        if len(letters_and_digits(layers[-1].text)) < SHORTEST:
            return None
    return layers or None


def _printed(
    text: str, kind: str, layers: Sequence[TextLayer], attended: _AttendedLines, value: WrittenValue
) -> Occurrence:
    """The occurrence in the text layers; of several, the one nearest to where the model looked, else the first."""
    found = [
        occurrence
        for page, layer in enumerate(layers)
        for start, end in find_printed(text, kind, layer.text)
        if (occurrence := _lines(layer.boxes[start:end], page))
    ]
    if len(found) > 1 and attended.possible and (seen := attended.at(value)):
        return min(found, key=lambda occurrence: _distance(occurrence[0], seen[0]))
    return found[0] if found else ()


def _lines(boxes: Sequence[tuple[float, float, float, float] | None], page: int) -> Occurrence:
    """One location per line for characters in reading order."""
    lines: list[list[Sequence[float]]] = []
    for box in boxes:
        if box is None:
            continue
        if lines and _adjoin(lines[-1][-1], box):
            lines[-1].append(box)
        else:
            lines.append([box])
    corners = ([*np.min(line, 0)[:2], *np.max(line, 0)[2:]] for line in lines)
    return tuple(Location(page, whole_box(box), "text layer") for box in corners)


def _adjoin(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two characters that follow each other stand on one line; on a turned page lines run up or down."""
    across, along = (one[axis] < (other[axis] + other[axis + 2]) / 2 < one[axis + 2] for axis in (0, 1))
    gap = max(other[1] - one[3], one[1] - other[3])
    return along or (across and gap < (one[3] - one[1]) / 2)


def _distance(one: Location, other: Location) -> tuple[int, float]:
    (x, y), (other_x, other_y) = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (one.box, other.box))
    return abs(one.page - other.page), (x - other_x) ** 2 + (y - other_y) ** 2


def whole_box(box: Sequence[float]) -> Box:
    """Whole thousandths within the page, at least one each way."""
    left, top = (min(999, max(0, int(value))) for value in box[:2])
    right, bottom = (min(1000, max(least + 1, round(value))) for least, value in zip((left, top), box[2:], strict=True))
    return left, top, right, bottom


@dataclass
class _AttendedLines:
    """Lines that the model attended to while it wrote a reply; computed when first needed."""

    sequence: ReplySequence
    prefill: Prefill | None

    @cached_property
    def grids(self) -> list[TokenGrid]:
        """The visual tokens of each page."""
        if self.prefill is None or not can_record(self.prefill.model.model):
            return []
        return token_grids(self.sequence.media, self.prefill.model)

    @property
    def possible(self) -> bool:
        """Whether attention can be mapped to pages."""
        return bool(self.grids)

    @cached_property
    def cells(self) -> list[Tensor]:
        """For each page (tokens of the reply, rows, columns) of attention."""
        assert self.prefill is not None
        attention = visual_attention(self.prefill, self.sequence)
        return [grid.spread(attention) for grid in self.grids]

    @cached_property
    def images(self) -> list[NDArray[np.uint8]]:
        """The pages in grey."""
        return [np.asarray(open_image(media).convert("L")) for media in self.sequence.media]

    def at(self, value: WrittenValue) -> Occurrence:
        """The lines that the model looked at while it wrote a value; none where its attention was spread out."""
        peaks = [_peaks(cells[list(value.tokens)]) for cells in self.cells]
        page = max(range(len(peaks)), key=lambda index: float(peaks[index][:, 2].sum()))
        looks = peaks[page]
        if looks[:, 2].mean() < SUPPORT:
            return ()
        grid = self.grids[page]
        boxes: list[tuple[float, ...]] = [box for line in _looked_lines(looks) for box in grid.on_page(*line)]
        if not grid.shows_lines:
            boxes = [self._on_print(box, page) for box in boxes]
        return tuple(Location(page, whole_box(box), "attention") for box in boxes)

    def _on_print(self, box: tuple[float, ...], page: int) -> tuple[float, ...]:
        """A box moved to the nearest line of print, where there is one."""
        grey = self.images[page]
        height, width = grey.shape
        left, top, right, bottom = (value / 1000 * side for value, side in zip(box, (width, height) * 2, strict=True))
        line = nearest_line(grey, (left, top, right, bottom))
        return box if line is None else (box[0], line[0] * 1000 / height, box[2], line[1] * 1000 / height)


def _peaks(cells: Tensor) -> NDArray[np.float64]:
    """(tokens, 3): x and y of the most attended window of 3 x 3 cells, its centre of mass, and its attention."""
    padded = torch.nn.functional.pad(cells, (1, 1, 1, 1))
    windows = torch.nn.functional.avg_pool2d(padded[:, None], 3, 1)[:, 0] * 9
    columns = cells.shape[2]
    best = windows.flatten(1).argmax(1)
    result = np.zeros((len(cells), 3))
    for token, (index, page) in enumerate(zip(best.tolist(), padded, strict=True)):
        row, column = divmod(index, columns)
        window = page[row : row + 3, column : column + 3]
        mass = float(window.sum())
        x, y = ((window.sum(axis) * torch.arange(3)).sum() / max(mass, 1e-9) for axis in (0, 1))
        result[token] = column + float(x) - 0.5, row + float(y) - 0.5, mass  # centres of cells
    return result


def _looked_lines(looks: NDArray[np.float64]) -> list[tuple[float, float, float, float]]:
    """Rectangles in cells round looks (tokens, 3) of one line each, the most attended line first."""
    lines: list[list[NDArray[np.float64]]] = []
    for look in looks:
        near = [line for line in lines if abs(look[1] - np.median([other[1] for other in line])) <= LINE]
        if near:
            near[0].append(look)
        else:
            lines.append([look])
    total = looks[:, 2].sum()
    kept = sorted(
        (line for line in lines if sum(look[2] for look in line) >= SHARE * total),
        key=lambda line: -sum(look[2] for look in line),
    )
    return [_rectangle(np.array(line)) for line in kept]


def _rectangle(line: NDArray[np.float64]) -> tuple[float, float, float, float]:
    left, right = np.percentile(line[:, 0], (5, 95)) if len(line) > 4 else (line[:, 0].min(), line[:, 0].max())
    middle = float(np.median(line[:, 1]))
    return float(left) - 0.5, middle - 0.5, float(right) + 0.5, middle + 0.5
