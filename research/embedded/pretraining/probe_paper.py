"""How well the tower alone reads real receipts: `python -m pretraining.probe_paper SROIE --checkpoints FOLDER`.

Only the training part is read. The characters that the glyph head names, cell after cell, are compared with the
receipt's transcript line after line, blanks and case left aside (transcripts are in capitals). No language model is
asked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from mllm_tailor.tasks.transcripts import rows_of
from PIL import Image
from rapidfuzz.distance import Levenshtein
from torch import nn

from pretraining import checkpoint, flow, flow_pictures, flow_vision


def averaged(name: str) -> nn.ModuleDict:
    """Tower and head of the stage `lines`: the running average of their weights."""
    average = torch.optim.swa_utils.AveragedModel(flow_vision.build())
    checkpoint.load(name, {"average": average})
    return average.module.eval()


@torch.no_grad()
def read(parts: nn.ModuleDict, image: Image.Image) -> str:
    """What the glyph head names, as lines of words."""
    grey = np.asarray(flow_pictures.flow_image(image)).reshape(-1, flow.WIDTH, flow.WIDTH)
    named = flow_vision.named(parts, grey)
    text = "".join(flow.character_of(index) for index in named.flatten().tolist())
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--name", default="lines")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--show", type=int, default=0, help="how many of the receipts to print")
    arguments = parser.parse_args()
    if arguments.checkpoints:
        checkpoint.FOLDER = arguments.checkpoints
    parts = averaged(arguments.name)
    rows = [json.loads(row) for row in (arguments.folder / "metadata.jsonl").read_text().splitlines()]
    wrong = length = 0
    for number, row in enumerate([row for row in rows if row["split"] == "train"][:: arguments.every]):
        with Image.open(arguments.folder / row["file_name"]) as image:
            found = read(parts, image)
        truth = "\n".join(rows_of(row["ocr"]))
        found_letters, true_letters = (text.upper().replace(" ", "") for text in (found, truth))
        wrong += Levenshtein.distance(found_letters, true_letters)
        length += len(true_letters)
        if number < arguments.show:
            print(found, "\n--", truth, "\n", sep="\n")
    print(f"{length:,} characters, {wrong / length:.1%} of them inserted, left out or replaced")


if __name__ == "__main__":
    main()
