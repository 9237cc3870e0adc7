"""Model folders beside one another on the same drawn receipts of unseen layouts, read as the product reads.

    python -m pretraining.compare ../../src/mllm_tailor/models/bundled/embedded
    python -m pretraining.compare OLD NEW --count 64 --beams 1 8 --unconstrained

Seeds of their own, never those of `score` or `evaluate`; half of the receipts are in languages never taught, none with
`--ascii`. Choosing weights or beams by them spoils them for nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.core.device import Stopwatch
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation import VisionFeatureCache, predict
from mllm_tailor.models import load_model
from mllm_tailor.recipe.schema import Predict
from rich.console import Console
from rich.table import Table

from pretraining.pages import is_ascii
from pretraining.score import FIELDS, TASK, drawn, similarity

FIRST_SEED = 21_000
COLUMNS = ("model", "beams", "held", "fuzzy", "± of the mean", "exact", *FIELDS, "no JSON", "seconds a receipt")


def receipts(folder: Path, count: int, ascii_only: bool) -> list[Sample]:
    """The first `count` receipts."""
    found: list[Sample] = []
    for seed in itertools.count(FIRST_SEED):
        if len(found) == count:
            return found
        sample = drawn(folder, seed)
        if is_ascii(sample.fields) or not ascii_only:
            found.append(sample)


def row(samples: Sequence[Sample], found: Sequence[Prediction], seconds: float) -> list[str]:
    """Scores as cells of the table; fields are exact shares."""
    table = similarity(samples, found)
    spread = table.mean(1).std() / len(samples) ** 0.5
    exact = table == 100
    shares = [f"{share:.0%}" for share in exact.mean(0)]
    empty = sum(not said.fields for said in found)
    return [f"{table.mean():.1f}", f"{spread:.1f}", f"{exact.mean():.1%}", *shares, str(empty), f"{seconds:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--beams", type=int, nargs="+", default=[1])
    parser.add_argument("--ascii", action="store_true", help="leave out other languages' letters")
    parser.add_argument("--unconstrained", action="store_true", help="also without the schema")
    arguments = parser.parse_args()
    table = Table(*COLUMNS)
    with tempfile.TemporaryDirectory() as place:
        samples = receipts(Path(place), arguments.count, arguments.ascii)
        for folder in arguments.folders:
            model, memory = load_model(folder, device="cpu"), VisionFeatureCache()
            for beams in arguments.beams:
                for held in (True, False)[: 1 + arguments.free]:
                    watch = Stopwatch()
                    settings = Predict(max_new_tokens=256, num_beams=beams)
                    found = predict(model, TASK, samples, settings, constrained=held, cache=memory)
                    cells = row(samples, found, watch.cpu_seconds() / len(samples))
                    table.add_row(folder, str(beams), "yes" if held else "no", *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
