"""What the tower alone reads of drawn documents: `python -m pretraining.probe_lines --checkpoints FOLDER`.

The characters that the glyph head names, row after row of cells, against those that are shown: how many are wrong,
missing, claimed twice or made up. Documents are drawn with seeds that no training uses; cells that no label can
describe are left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from pretraining import checkpoint, flow, flow_pictures, flow_vision
from pretraining.probe_paper import averaged

SEED = 99


def rows(cells: torch.Tensor) -> Iterator[str]:
    """The text of every row of cells."""
    for row in cells.view(-1, flow.COLUMNS * flow.SLOTS).tolist():
        yield "".join(map(flow.character_of, row))


def slips(found: str, shown: str) -> Iterator[str]:
    """What separates the text found from the text shown, one word an edit."""
    for edit in Levenshtein.editops(found, shown):
        if edit.tag == "replace":
            yield "wrong"
        elif edit.tag == "insert":
            yield "missing blank" if shown[edit.dest_pos] == " " else "missing"
        elif found[edit.src_pos] == " ":
            yield "blank too many"
        else:
            beside = found[max(0, edit.src_pos - 1) : edit.src_pos] + found[edit.src_pos + 1 : edit.src_pos + 2]
            yield "twice" if found[edit.src_pos] in beside else "made up"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--name", default="lines")
    parser.add_argument("--count", type=int, default=24, help="documents")
    arguments = parser.parse_args()
    if arguments.checkpoints:
        checkpoint.FOLDER = arguments.checkpoints
    parts, counts, characters = averaged(arguments.name), Counter(), 0
    for number in range(arguments.count):
        tiles, example = flow_pictures.random_example(np.random.default_rng([SEED, number]))
        shown, found = torch.from_numpy(example.tokens), flow_vision.named(parts, tiles)
        unknown = (shown < 0).any(1, keepdim=True)
        for read, true in zip(rows(found.masked_fill(unknown, 0)), rows(shown.masked_fill(unknown, 0)), strict=True):
            counts.update(slips(read, true))
            characters += len(true)
    shares = ", ".join(f"{kind} {count / characters:.2%}" for kind, count in counts.most_common())
    print(f"{characters:,} characters, {counts.total() / characters:.2%} errors: {shares}")


if __name__ == "__main__":
    main()
