"""The line of print nearest to a box."""

from __future__ import annotations

import numpy as np

from mllm_tailor.media.text_lines import nearest_line


def page() -> np.ndarray:
    """Lines of print at rows 20 to 30, 45 to 55 and 70 to 80 of columns 10 to 60, a rule at row 38."""
    grey = np.full((120, 100), 240, np.uint8)
    for top in (20, 45, 70):
        grey[top : top + 10, 10:60:3] = 30
    grey[38:40] = 0
    return grey


def test_a_box_between_lines_moves_to_the_nearer_one() -> None:
    assert nearest_line(page(), (12, 28, 40, 56)) == (45, 55)
    assert nearest_line(page(), (12, 14, 40, 42)) == (20, 30)
    assert nearest_line(page(), (12, 50, 40, 78)) == (70, 80)


def test_where_nothing_is_printed_there_is_no_line() -> None:
    grey = page()
    assert nearest_line(grey, (70, 20, 90, 34)) is None  # beside the print, but for the rule
    assert nearest_line(np.full((50, 50), 200, np.uint8), (0, 0, 50, 20)) is None
    assert nearest_line(grey, (200, 200, 220, 220)) is None
    grey[15:90, 10:60] = 30
    assert nearest_line(grey, (12, 40, 40, 60)) is None  # a dark block is no line
