"""Documents drawn by the project itself: every character's place and every field's value are known.

compose content -> place lines -> print ink -> distort; `text_layout` stops after placing.
"""

from __future__ import annotations

from mllm_tailor.synthetic.draw import (
    DEMO_LAYOUTS,
    KINDS,
    DrawnCharacter,
    DrawnLine,
    DrawnPage,
    Style,
    draw_document,
    fit,
    layouts_of,
    text_layout,
)
from mllm_tailor.synthetic.folder import draw_folder
from mllm_tailor.synthetic.fonts import FontSet
from mllm_tailor.synthetic.page import DrawnText

__all__ = [
    "DEMO_LAYOUTS", "KINDS", "DrawnCharacter", "DrawnLine", "DrawnPage", "DrawnText", "FontSet", "Style",
    "draw_document", "draw_folder", "fit", "layouts_of", "text_layout",
]  # fmt: skip
