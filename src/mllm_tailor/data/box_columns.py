"""Boxes among the columns of a row: four columns become one, and what is in the box becomes the question.

Unit and order of the four numbers are settings of `task.ground`, decided for the set (`propose_boxes`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mllm_tailor.data.asked import QUESTION_COLUMNS
from mllm_tailor.data.options import listed

BOX_FIELDS = ("box", "bbox", "bounding_box")
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
PHRASES = (  # in lower case and without separators
    *("phrase", "expression", "referringexpression", "refexp", "sentence", "label", "labelname", "class", "classname"),
    *("category", "name", "caption", "text"),
)


def with_box(values: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the box of four columns in `box`, and the phrase that a box belongs to as its question.

    >>> with_box({"class": "cup", "xmin": "10", "ymin": "12", "xmax": "40", "ymax": "50"})
    {'question': 'cup', 'box': [10.0, 12.0, 40.0, 50.0]}
    """
    stated = dict(values)
    folded = {_folded(str(name)): name for name in stated}
    corners = next((names for names in CORNERS if set(names) <= set(folded)), None)
    if corners is not None and not set(BOX_FIELDS) & set(stated):
        numbers = [_number(stated[folded[name]]) for name in corners]
        if None not in numbers:
            stated = {name: value for name, value in stated.items() if name not in {folded[name] for name in corners}}
            stated["box"] = numbers
    field = next((name for name in BOX_FIELDS if is_box(stated.get(name))), None)
    if field is None or any(stated.get(name) for name in QUESTION_COLUMNS):
        return stated
    named = (folded[name] for name in PHRASES if folded.get(name) in stated)
    phrase = next((name for name in named if isinstance(stated[name], str) and stated[name].strip()), None)
    return {("question" if name == phrase else name): value for name, value in stated.items()}


@lru_cache(maxsize=4096)  # names recur in every row
def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def is_box(value: Any) -> bool:
    """Whether a value is a list of four numbers, or holds one as text of a table."""
    value = listed(value) if isinstance(value, str) else value
    return isinstance(value, list) and len(value) == 4 and all(_number(number) is not None for number in value)


def _number(value: Any) -> float | None:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
