"""Boxes and outlines of annotation tools as samples: one phrase and its box, or one phrase and its outlines, a sample.

Coordinates become thousandths of the image's width and height, as `tasks.ground` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.media.open import image_size

FULL = 1000
Point = tuple[float, float]


@dataclass(frozen=True)
class Region:
    """What is named and where it is, in shares of the image's width and height (0 to 1)."""

    label: str
    points: tuple[Point, ...]  # two opposite corners of a box, or the corners of an outline
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_box(self) -> bool:
        """Whether it is a box."""
        return len(self.points) == 2

    def box(self) -> list[int]:
        """Left, top, right and bottom in thousandths, inside the image."""
        xs, ys = zip(*self.points, strict=True)
        return [_thousandths(value) for value in (min(xs), min(ys), max(xs), max(ys))]

    def outline(self) -> list[list[int]]:
        """The corners of the outline in thousandths; of a box its four corners."""
        if not self.is_box:
            return [[_thousandths(x), _thousandths(y)] for x, y in self.points]
        left, top, right, bottom = self.box()
        return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _thousandths(share: float) -> int:
    return round(min(FULL, max(0, FULL * share)))  # a share may be too large for an integer


def scaled(points: Any, size: tuple[float, float], source: str) -> tuple[Point, ...]:
    """Points of an image of this width and height as shares of both.

    Raises:
        DataError: for anything but pairs of numbers, or a size that is none.
    """
    width, height = size
    if not (width > 0 and height > 0):
        raise DataError(f"{source}: the image is stated to be {width:g}x{height:g} — correct its size")
    result = []
    for point in points if isinstance(points, (list, tuple)) else [points]:
        pair = point if isinstance(point, (list, tuple)) else ()
        if len(pair) != 2 or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in pair):
            raise DataError(f"{source}: a point is two numbers, found {str(point)[:80]} — correct the label")
        result.append((pair[0] / width, pair[1] / height))
    return tuple(result)


def size_of(media: tuple[Media, ...], stated: tuple[Any, Any]) -> tuple[float, float]:
    """The width and height that a label states, else those of the image's file.

    Raises:
        DataError: naming the file.
    """
    width, height = stated
    for value in stated:
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise DataError(f"{media[0].describe()}: its label states the size {value!r} — correct it, or take it out")
    if isinstance(width, (int, float)) and isinstance(height, (int, float)) and width > 0 and height > 0:
        return float(width), float(height)
    return image_size(media[0])


def region_samples(base: Sample, regions: Sequence[Region]) -> Iterator[Sample | DataIssue]:
    """One sample for each label of an image: all its outlines, or its box; other columns of the row stand beside it.

    A label with several boxes is named and left out: a phrase that means several things asks for none of them.
    """
    beside = {name: value for name, value in {**base.fields, "question": base.prompt}.items() if value}
    by_label: dict[str, list[Region]] = {}
    for region in regions:
        by_label.setdefault(region.label, []).append(region)
    for number, (label, group) in enumerate(by_label.items(), 1):
        fields: dict[str, Any] = {"polygon": [region.outline() for region in group]}
        if all(region.is_box for region in group):
            if len(group) > 1:
                problem = f"`{label}` has {len(group)} boxes in this image, and is left out"
                yield DataIssue(
                    base.source, problem, "a phrase must mean one thing: name each, or leave it so", None, "warning"
                )
                continue
            fields = {"box": group[0].box()}
        yield Sample(
            f"{base.id}-{number}",
            base.media,
            prompt=label,
            fields=fields,
            group=base.group,
            split=base.split,
            source=base.source,
            extra={**beside, **base.extra, **_joined_extra(group)},
        )


def _joined_extra(regions: Sequence[Region]) -> dict[str, Any]:
    """What is known beside the regions of one label; values that differ are joined."""
    values: dict[str, list[Any]] = {}
    for region in regions:
        for name, value in region.extra.items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    return {name: found[0] if len(found) == 1 else "; ".join(map(str, found)) for name, found in values.items()}
