"""How well the product finds the printed lines of real receipts: `python -m pretraining.lines_found SROIE --every 10`.

Only the training part is read. A transcribed line counts as found where the middle of its quad lies in a line found,
that line covers at least four fifths of the quad's inner height, and no other quad of that line lies more than 0.7 of a
line's height above or below it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mllm_tailor.media.reflow import set_lines
from mllm_tailor.media.reflow_lines import PrintedPage, TextLine, read_page
from PIL import Image

from pretraining import flow

INNER = 0.7  # of a quad's height: quads are drawn loosely


@dataclass(frozen=True)
class Quad:
    """A transcribed line on the straightened page: its middle and height in px."""

    middle: float
    height: float
    text: str

    def covered(self, line: TextLine) -> float:
        half = self.height * INNER / 2
        return (min(line.bottom, self.middle + half) - max(line.top, self.middle - half)) / (2 * half)


def quads_of(row: dict, page: PrintedPage, factor: float) -> list[Quad]:
    quads = []
    for entry in row["ocr"]:
        corners = np.array(entry["quad"]).reshape(4, 2) * factor
        x, y = corners.mean(0)
        level = y - page.slope(y) * (x - page.grey.width / 2)
        quads.append(Quad(float(level), float(corners[2:, 1].mean() - corners[:2, 1].mean()), entry["text"]))
    return quads


def found(quads: list[Quad], page: PrintedPage) -> list[bool]:
    """For each quad, whether a line of the page shows it whole and nothing else."""
    owners: list[TextLine | None] = [
        next((line for line in page.lines if line.top - 1 <= quad.middle <= line.bottom + 1), None) for quad in quads
    ]
    result = []
    for quad, owner in zip(quads, owners, strict=True):
        others = [other for other, line in zip(quads, owners, strict=True) if line is owner]
        alone = all(abs(o.middle - quad.middle) < 0.7 * max(1.0, min(o.height, quad.height)) for o in others)
        result.append(owner is not None and quad.covered(owner) > 0.8 and alone)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--show", type=int, default=0, help="how many of the lines not found to print")
    arguments = parser.parse_args()
    rows = [json.loads(row) for row in (arguments.folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "train"][:: arguments.every]
    shares, missed, tiles, count = [], [], [], 0
    for row in rows:
        with Image.open(arguments.folder / row["file_name"]) as image:
            page = read_page(image)
            factor = page.grey.width / image.width
        quads = quads_of(row, page, factor)
        right = found(quads, page)
        count += len(quads)
        shares.append(np.mean(right))
        missed += [(row["id"], quad.text) for quad, good in zip(quads, right, strict=True) if not good]
        tiles.append(set_lines(page, flow.COLUMNS).tiles)
    print(f"{len(rows)} receipts, {count} transcribed lines, {1 - len(missed) / count:.2%} found")
    print(f"receipts with all lines found: {np.mean(np.array(shares) == 1):.1%}; tiles {np.bincount(tiles).tolist()}")
    for name, text in missed[: arguments.show]:
        print(name, text)


if __name__ == "__main__":
    main()
