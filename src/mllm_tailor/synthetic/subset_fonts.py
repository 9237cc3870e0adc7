"""Makes the small font files in `fonts/` from a machine's full ones; run once, its output is committed.

    python -m mllm_tailor.synthetic.subset_fonts SOURCE...

Keeps Latin-1 and the euro, drops hinting and layout tables, and gives each subset a neutral name because the open font
licence keeps the original names for the original fonts. Needs fonttools (in the `dev` extra).
"""

from __future__ import annotations

import sys
from pathlib import Path

from mllm_tailor.synthetic.fonts import SHIPPED

CHARACTERS = [*range(0x20, 0x7F), *range(0xA0, 0x100), 0x20AC]
NAMES = {
    "Arimo-Regular": "Sans-Regular",
    "Arimo-Bold": "Sans-Bold",
    "Cousine-Regular": "Mono-Regular",
    "Inconsolata": "Slim-Mono-Regular",
    "DotGothic16-Regular": "Dotted-Regular",
    "spleen-8x16": "Terminal-Regular",
}


def subset(source: Path) -> Path:
    """Write the Latin-1 subset of one font under its neutral name; returns where."""
    from fontTools import subset as subsetter
    from fontTools.ttLib import TTFont

    options = subsetter.Options(
        hinting=False, layout_features=[], name_IDs=[0, 1, 2, 3, 4, 6, 13, 14], notdef_outline=True
    )
    font = TTFont(source)
    worker = subsetter.Subsetter(options)
    worker.populate(unicodes=CHARACTERS)
    worker.subset(font)
    name = NAMES[source.stem]
    for record in font["name"].names:
        if record.nameID in (1, 3, 4, 6):
            record.string = f"Tailor-{name}"
    target = SHIPPED / f"{name}{source.suffix}"
    font.save(target)
    return target


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        path = subset(Path(argument))
        print(f"{path.name}: {path.stat().st_size} bytes")  # noqa: T201
