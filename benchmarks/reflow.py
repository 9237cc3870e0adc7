"""What it costs to set the printed lines of a page one after the other, and whether all of them are shown.

    python benchmarks/reflow.py FOLDER      # receipts with `ocr` quads in FOLDER/metadata.jsonl, every tenth of `train`

CPU seconds a page: of opening the file, of finding the lines, of setting and drawing them, and beside it of finding
the margins for `model.trim`. `print_found` are the pages taken for print; `shown` the transcribed lines whose middle
lies in a line that the reflowed image shows, by the way back from the image to the page. Writes results/reflow.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mllm_tailor.core.sample import Media
from mllm_tailor.media.crop import print_box
from mllm_tailor.media.open import open_image
from mllm_tailor.media.reflow import Reflowed, TileSpec, reflow
from mllm_tailor.media.reflow_lines import read_page

Value = TypeVar("Value")
HERE = Path(__file__).resolve().parent
TILES = TileSpec(tokens=16, size=448, fewest=1, most=3)


class Clock:
    """CPU seconds by name."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def timed(self, name: str, call: Callable[[], Value]) -> Value:
        """What a call returns; its CPU time is added."""
        started = time.process_time()
        result = call()
        self.seconds[name] += time.process_time() - started
        return result


def shown(row: Mapping[str, Any], page: Reflowed, size: tuple[int, int]) -> list[bool]:
    """For each transcribed line, whether its middle lies in a line that the image shows."""
    boxes = np.array(page.to_page((0, 0, 1000, 1000)))
    result = []
    for entry in row["ocr"]:
        x, y = np.array(entry["quad"]).reshape(4, 2).mean(0) / size * 1000
        result.append(bool(((boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])).any()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    rows = [json.loads(row) for row in (options.folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "train"][:: options.every]
    clock, lines, tiles = Clock(), [], Counter[str]()
    for row in rows:
        image = clock.timed("open", lambda row=row: open_image(Media("image", options.folder / row["file_name"])))
        clock.timed("find_margins", lambda image=image: print_box(image))
        clock.timed("find_lines", lambda image=image: read_page(image))
        page = clock.timed("all", lambda image=image: reflow(image, TILES))
        if page is None:
            tiles["none"] += 1
            continue
        clock.timed("draw", page.image)
        tiles[str(page.tiles)] += 1
        lines += shown(row, page, image.size)
    seconds = clock.seconds
    seconds["set_and_draw"] = seconds.pop("all") - seconds["find_lines"] + seconds.pop("draw")
    result = {
        "pages": len(rows),
        "cpu_seconds_a_page": {name: round(value / len(rows), 4) for name, value in sorted(seconds.items())},
        "print_found": len(rows) - tiles["none"],
        "tiles": dict(sorted(tiles.items())),
        "transcribed_lines": len(lines),
        "shown": round(sum(lines) / len(lines), 4),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
    }
    (HERE / "results" / "reflow.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
