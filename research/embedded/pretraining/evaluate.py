"""How well a model folder reads: drawn receipts of unseen layouts, single lines, and real receipts zero-shot."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mllm_tailor.media.crop import print_box
from mllm_tailor.media.image import to_rgb
from mllm_tailor.media.reflow import TileSpec, reflow
from mllm_tailor.models.inputs.internvl_processor import IMAGENET_MEAN, IMAGENET_STD
from mllm_tailor.models.inputs.tiling import tile_image, tiles_to_tensor
from mllm_tailor.synthetic import DrawnPage, Style
from mllm_tailor.synthetic.draw import compose, draw_sheet
from mllm_tailor.tasks.reply import read_object
from PIL import Image
from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein
from transformers import InternVLForConditionalGeneration

from pretraining import architecture, checkpoint, flow_join, optim, pages, pictures, questions, rewording
from pretraining.pages import Page
from pretraining.tiles import TILE

MAIN = questions.MAIN
QUESTION = "Extract company, date, address, total as JSON."


def pixels_of(model: torch.nn.Module, image: Image.Image, most: int) -> torch.Tensor:
    """Pixel values of an image as the model reads it: its lines one after the other, or cut into tiles as it is."""
    reads_lines = model.config.downsample_ratio == 1
    if reads_lines and (page := reflow(image, TileSpec(architecture.SIDE, TILE, 1, most))):
        image = page.image()
    return tiles_to_tensor(tile_image(image, 1, most, TILE, thumbnail=False), IMAGENET_MEAN, IMAGENET_STD)


@torch.no_grad()
def ask(model: torch.nn.Module, image: Image.Image, question: str, most: int = 3, tokens: int = 320) -> str:
    """The model's greedy answer about a picture."""
    pixels = pixels_of(model, image, most).to(model.device)
    ids = torch.tensor([architecture.prompt_ids(len(pixels) * architecture.VISUAL, question)], device=model.device)
    with optim.computing(model.device):
        reply = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            do_sample=False,
            max_new_tokens=tokens,
        )
    return architecture.TOKENIZER.decode(reply[0, ids.shape[1] :], skip_special_tokens=True)


def field_scores(pairs: list[tuple[str, dict[str, str]]]) -> dict[str, float]:
    """Mean over documents of the mean fuzzy similarity (0..100) over their fields, exact shares, share that parses."""
    fuzzy, exact, parsed = [], {key: [] for key in MAIN}, []
    for reply, fields in pairs:
        found = read_object(reply).fields or {}
        parsed.append(bool(found))
        fuzzy.append(np.mean([fuzz.ratio(str(fields[key]), str(found.get(key, ""))) for key in fields]))
        for key in fields:
            exact[key].append(str(found.get(key, "")) == fields[key])
    scores = {
        "documents": len(pairs),
        "fuzzy": float(np.mean(fuzzy)),
        "exact": float(np.mean([np.mean(v) for v in exact.values()])),
        "parsed": float(np.mean(parsed)),
    }
    return scores | {f"exact_{key}": float(np.mean(values)) for key, values in exact.items()}


def drawn_receipts(
    model: torch.nn.Module, count: int, seed: int = 77, draw: Callable[..., DrawnPage] = pictures.drawn_page
) -> dict[str, float]:
    pairs = []
    for index in range(count):
        page = draw(np.random.default_rng([seed, index]), held_out=True)
        pairs.append((ask(model, page.image, QUESTION), page.fields))
    return field_scores(pairs)


def invented_page(rng: np.random.Generator, held_out: bool = True) -> DrawnPage:
    """A drawn receipt whose names and streets are words that nobody has seen; clean enough that reading decides."""
    layouts = pages.receipt_layouts(held_out)
    while True:
        seed = int(rng.integers(1 << 40))
        sheet = compose("receipts", seed, layouts=layouts)
        if pages.is_ascii(sheet.fields):
            words = rewording.Rewording(rng, 1.0, rewording.named_words(sheet.fields))
            return draw_sheet(rewording.reworded_sheet(sheet, words), seed, style=Style(on_a4=False), effects=0.3)


def single_lines(model: torch.nn.Module, count: int, seed: int = 78) -> dict[str, float]:
    """Character error of one line in one picture, held-out fonts."""
    errors = length = 0
    for index in range(count):
        picture = pictures.few_lines(np.random.default_rng([seed, index]), most=1, held_out=True)
        question, answer = picture.turns[0]
        reply = ask(model, Image.fromarray(picture.tiles[0]), question, tokens=80)
        errors += Levenshtein.distance(reply, answer)
        length += len(answer)
    return {"lines": count, "character_error": errors / length}


def real_receipts(
    model: torch.nn.Module, folder: Path, count: int, split: str = "train", show: int = 0
) -> dict[str, float]:
    rows = [json.loads(row) for row in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == split]
    pairs = []
    for row in rows[:: max(1, len(rows) // count)][:count]:
        name = row["file_name"] if "/" in row["file_name"] else f"images/{row['file_name']}"
        image = to_rgb(Image.open(folder / name))
        reply = ask(model, image.crop(print_box(image)), QUESTION)
        pairs.append((reply, {key: value for key, value in row["entities"].items() if key in MAIN}))
        if len(pairs) <= show:
            print(reply, "\n   ", row["entities"])
    return field_scores(pairs)


def held_out_examples(count: int, seed: int = 79) -> list[Page]:
    from pretraining.pages import text_page

    return [text_page(np.random.default_rng([seed, index]), held_out=True) for index in range(count)]


def opened(name: str, checkpoints: Path | None) -> torch.nn.Module:
    """A model folder, or the checkpoint of the stage `read` in its folder."""
    if checkpoints is None:
        return InternVLForConditionalGeneration.from_pretrained(name)
    checkpoint.FOLDER = checkpoints
    parts = flow_join.build()
    checkpoint.load(name, parts)
    return parts["model"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model folder, or (with --checkpoints) the checkpoint of the stage `read`")
    parser.add_argument("--checkpoints", type=Path, help="folder of the checkpoints")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument(
        "--invented", action="store_true", help="also drawn receipts whose names and streets are invented"
    )
    parser.add_argument("--real", type=Path, help="folder of SROIE: measure zero-shot on its training part")
    arguments = parser.parse_args()
    model = opened(arguments.model, arguments.checkpoints).eval()
    if arguments.invented:
        print("invented words", drawn_receipts(model, arguments.count, draw=invented_page))
        return
    print("single lines", single_lines(model, arguments.count))
    print("drawn receipts", drawn_receipts(model, arguments.count))
    if arguments.real:
        print("real receipts", real_receipts(model, arguments.real, arguments.count, show=5))


if __name__ == "__main__":
    main()
