"""Receipts per second of `predict` against the loop everybody writes: one picture, one prompt, one `generate`.

    python benchmarks/predict.py                      # a random InternVL of 10 million weights, drawn noise pictures
    python benchmarks/predict.py --model FOLDER --samples 16

Both sides use the same weights, pictures and JSON schema on one thread, in interleaved rounds. The plain loop is
transformers alone (its image processor, its `generate`, llguidance as a logits processor where replies are held to the
schema). Seconds are CPU seconds of this process, so that other work on the machine does not decide the ratio;
wall seconds stand beside them. Results go to benchmarks/results/predict.json; the command fails when a ratio fell by
more than 10 % under the one stored there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import llguidance.numpy
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import LogitsProcessor

from mllm_tailor.core.device import Stopwatch, describe_machine
from mllm_tailor.core.io import write_json
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.generation import VisionFeatureCache, predict, predict_both
from mllm_tailor.generation.constrain import Grammar, Guide, Vocabulary, allowed_tokens
from mllm_tailor.generation.predictor import make_engine
from mllm_tailor.models import InputSettings, LoadedModel, collate, encode, load_model
from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save
from mllm_tailor.models.patches.cpu_attention import torch_attention
from mllm_tailor.recipe.schema import Predict, Tiles
from mllm_tailor.tasks import Task, open_task

RESULTS = Path(__file__).parent / "results" / "predict.json"
FIELDS = {  # noise is read to the longest value, in letters of two bytes: as many tokens as the mean real receipt
    "company": {"type": "string", "max_length": 14},
    "date": {"type": "date", "max_length": 10},
    "address": {"type": "string", "max_length": 32},
    "total": {"type": "amount", "max_length": 6},
}


class Hold(LogitsProcessor):
    """The schema as plain `generate` takes it: one mask a token, nothing forced."""

    def __init__(self, guide: Guide, width: int, prompt: int) -> None:
        self.guide, self.width, self.seen = guide, width, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token in input_ids[0, self.seen :].tolist():
            self.guide.accept(token)
        self.seen = input_ids.shape[1]
        masks = llguidance.numpy.allocate_token_bitmask(1, self.width)
        self.guide.fill(masks, 0)
        return scores.masked_fill(~torch.from_numpy(allowed_tokens(masks, self.width)), -torch.inf)


@torch.inference_mode()
def plain(model: LoadedModel, task: Task, samples: list[Sample], settings: Predict, held: bool) -> list[str]:
    """Batch one, transformers alone."""
    width = model.model.config.get_text_config().vocab_size
    vocabulary = Vocabulary(model.tokenizer, width, sorted(model.stop_ids))
    grammar = Grammar(task.schema(), vocabulary)
    replies = []
    for sample in samples:
        content = [{"type": "image"}, {"type": "text", "text": task.phrase(sample).prompt}]
        text = model.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        if model.tiles.thumbnail:
            inputs = model.processor(images=[Image.open(sample.media[0].path)], text=[text], return_tensors="pt")
        else:  # transformers' processor adds the whole image in any case, one more tile than the others read
            inputs = collate([encode(task.phrase(sample), model)], model)
        start = inputs["input_ids"].shape[1]
        with torch_attention():
            ids = model.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=inputs["pixel_values"],
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                logits_processor=[Hold(grammar.guide(), width, start)] if held else None,
            )
        replies.append(vocabulary.text_of(ids[0, start:].tolist()))
    return replies


@dataclass
class Timed:
    """One way of reading the samples."""

    name: str
    read: Callable[[], list[str]]
    replies: int  # a sample read in two modes counts twice
    cpu: list[float] = field(default_factory=list)  # CPU seconds of each round
    wall: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def round(self) -> None:
        """Read once more."""
        watch = Stopwatch()
        self.texts = self.read()
        self.cpu.append(watch.cpu_seconds())
        self.wall.append(watch.seconds())

    def rate(self) -> float:
        """Replies a CPU second, by the median round."""
        return self.replies / statistics.median(self.cpu)


def ways(model: LoadedModel, task: Task, samples: list[Sample], settings: Predict) -> list[Timed]:
    """The plain loop, ours, and ours with one thing left out."""
    count = len(samples)
    single = settings.model_copy(update={"batch_size": 1})
    memory = VisionFeatureCache()

    def ours(changed: Predict = settings, **options: object) -> Callable[[], list[str]]:
        return lambda: [found.text for found in predict(model, task, samples, changed, **options)]

    def both(kept: VisionFeatureCache | None) -> Callable[[], list[str]]:
        def read() -> list[str]:
            found = predict_both(model, task, samples, settings, cache=kept)
            return [prediction.text for replies in found.values() for prediction in replies]

        return read

    def plain_both() -> list[str]:
        return [text for held in (True, False) for text in plain(model, task, samples, settings, held)]

    return [
        Timed("plain, constrained", lambda: plain(model, task, samples, settings, True), count),
        Timed("ours, constrained", ours(), count),
        Timed("ours, forced tokens one by one", ours(engine=make_engine(model, settings, feed_forced=False)), count),
        Timed("ours, batch 1", ours(single), count),
        Timed("ours, constrained, images seen before", ours(cache=memory), count),
        Timed("plain, both modes", plain_both, 2 * count),
        Timed("ours, both modes", both(None), 2 * count),
        Timed("ours, both modes, images seen before", both(memory), 2 * count),
    ]


def random_model(folder: Path) -> LoadedModel:
    """10 million weights in the shape of the embedded model, scaled so that pictures change what is said."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = build_internvl(
        tokenizer,
        vision_width=256,
        vision_layers=6,
        text_width=256,
        text_layers=6,
        image_size=448,
        head_width=32,
        tie_embeddings=False,
    )
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "vision" not in name:
            torch.nn.init.normal_(weight, std=0.12)
    save(model, build_processor(tokenizer, 448, max_tiles=2), folder)
    return load_model(folder, dtype="float32")


def noise(folder: Path, count: int) -> list[Sample]:
    """Pictures as tall as receipts: two tiles and the whole."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (1000, 500, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(str(number), (Media("image", path),)))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or `embedded`; default: random weights")
    parser.add_argument("--samples", type=int, default=8, help="pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--save", action="store_true", help="store these ratios as the ones to hold")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = (
            load_model(arguments.model, dtype="float32", inputs=InputSettings(tiles=Tiles(min=1, max=2)))
            if arguments.model
            else random_model(folder / "model")
        )
        settings = Predict(batch_size=arguments.batch, max_new_tokens=arguments.max_new_tokens)
        timed = ways(model, open_task("extract", FIELDS), noise(folder, arguments.samples), settings)
        timed[-1].read()  # its pictures are met here
        for number in range(arguments.rounds):
            for way in timed:
                print(f"round {number + 1}: {way.name}", file=sys.stderr)
                way.round()
    report(timed, arguments, model)


def report(timed: list[Timed], arguments: argparse.Namespace, model: LoadedModel) -> None:
    """Print the table, write the JSON, compare with what is stored."""
    plain_ways = [way for way in timed if way.name.startswith("plain")]
    against = {"both modes" in way.name: way for way in plain_ways}
    table = Table("way", "replies a CPU second", "spread", "wall seconds", "ratio", "same replies")
    rows = []
    for way in timed:
        plain_way = against["both modes" in way.name]
        ratio = way.rate() / plain_way.rate()
        same = sum(one == other for one, other in zip(way.texts, plain_way.texts, strict=True))
        spread = f"{way.replies / max(way.cpu):.2f}–{way.replies / min(way.cpu):.2f}"
        wall = statistics.median(way.wall)
        table.add_row(way.name, f"{way.rate():.2f}", spread, f"{wall:.1f}", f"{ratio:.2f}", f"{same}/{way.replies}")
        rows.append({**numbers(way), "rate": way.rate(), "ratio": ratio, "same_replies": same})
    Console().print(table)
    weights = sum(weight.numel() for weight in model.model.parameters())
    stored = {row["name"]: row["ratio"] for row in json.loads(RESULTS.read_text())["ways"]} if RESULTS.exists() else {}
    if arguments.save or not stored:
        facts = {"machine": describe_machine(), "weights": weights, "arguments": vars(arguments)}
        write_json(RESULTS, {**facts, "ways": rows})
    fallen = [row["name"] for row in rows if row["ratio"] < 0.9 * stored.get(row["name"], 0)]
    if fallen and not arguments.save:
        sys.exit(f"more than 10 % under the stored ratio: {'; '.join(fallen)}")


def numbers(way: Timed) -> dict[str, object]:
    """The numbers of a way."""
    return {"name": way.name, "replies": way.replies, "cpu_seconds": way.cpu, "wall_seconds": way.wall}


if __name__ == "__main__":
    main()
