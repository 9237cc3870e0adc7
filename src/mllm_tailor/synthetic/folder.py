"""The demo's data: a SROIE-like folder of drawn receipts of one shop chain."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from mllm_tailor.core.io import atomic_folder
from mllm_tailor.core.progress import track
from mllm_tailor.synthetic.draw import DrawnPage, Style, draw_sheet, fit
from mllm_tailor.synthetic.franchise import compose_franchise, make_chain

BRANCHES, UNSEEN = 12, 3  # of which the last few occur among the held-out receipts only
WIDTH, TALLEST = 448, 896  # pixels: one or two tiles
EFFECTS = 0.5


def draw_folder(folder: Path, train: int, held_out: int, seed: int = 0, *, items: bool = False) -> None:
    """Draw `train` + `held_out` receipts into `folder`: images/, entities/ and metadata.jsonl with split and group.

    With `items` the labels hold the line items too: name, count, price and amount as printed, empty where they are not
    (a single piece has neither count nor price). The images are the same.

    About half of the held-out receipts come from branches that never occur in training.
    """
    with atomic_folder(folder) as partial:
        _draw(partial, train, held_out, seed, items=items)


def _draw(folder: Path, train: int, held_out: int, seed: int, *, items: bool) -> None:
    rng = random.Random(f"chain {seed}")
    chain = make_chain(rng, BRANCHES)
    for name in ("images", "entities"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for index in track(range(train + held_out), "Drawing receipts"):
        dev = index >= train
        among = range(BRANCHES - UNSEEN, BRANCHES) if dev and index % 2 else range(BRANCHES - UNSEEN)
        branch = rng.choice(among)
        sheet = compose_franchise(rng, chain, chain.branches[branch])
        style = Style(width=WIDTH, font=chain.face, on_a4=False)
        page = fit(draw_sheet(sheet, rng.getrandbits(32), style=style, effects=EFFECTS), WIDTH, TALLEST)
        labels = {**page.fields, "items": sheet.items} if items else dict(page.fields)
        name = f"{seed}-{index:04}"
        rows.append(
            _write(folder, name, page, labels)
            | {"split": "dev" if dev else "train", "group": f"branch {branch + 1:02}"}
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def draw_folder_with_items(folder: Path, train: int, held_out: int, seed: int = 0) -> None:
    """`draw_folder` with line items in the labels."""
    draw_folder(folder, train, held_out, seed, items=True)


def _write(folder: Path, name: str, page: DrawnPage, labels: Mapping[str, object]) -> dict[str, object]:
    page.image.save(folder / "images" / f"{name}.jpg", quality=90)
    (folder / "entities" / f"{name}.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1), "utf-8")
    return {
        "file_name": f"images/{name}.jpg",
        "id": name,
        "width": page.image.width,
        "height": page.image.height,
        "entities": labels,
        "ocr": [{"quad": [round(value, 1) for value in line.quad], "text": line.text} for line in page.lines],
    }
