"""What an optimisation of decoding saves: the same receipts read with and without it, in turns.

    python benchmarks/savings_decoding.py

Drawn receipts by the embedded model in float32, constrained, with 1 beam and with 8; images met before, so that the
vision pass is left out. CPU seconds of one thread, the best of the rounds. Results:
benchmarks/results/savings_decoding.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from readers import draw_receipts

from mllm_tailor.core.device import Stopwatch, describe_machine
from mllm_tailor.core.io import write_json
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.generation import VisionFeatureCache, engine, kv_cache, predict, shared_prefix_attention
from mllm_tailor.generation.decoder_step import DecoderStep
from mllm_tailor.models import load_model
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task

RESULTS = Path(__file__).parent / "results" / "savings_decoding.json"
FIELDS = {"company": "string", "date": "date", "address": "string", "total": "amount"}
RECEIPTS = {1: 6, 8: 3}  # by the number of beams
SEED = 31_002
WAYS = {
    "ours": "",
    "decoder step": "transformers' modules",
    "attention in C": "torch's products",
    "rows that stay": "all rows copied",
    "rows in one copy": "rows copied one by one",
}


def without(name: str) -> AbstractContextManager[object]:
    """One thing left out."""
    if name == "decoder step":
        return patch.object(DecoderStep, "of", lambda _: None)
    if name == "attention in C":
        return patch.object(shared_prefix_attention, "kernel_for", lambda *_: None)
    if name == "rows that stay":
        return patch.object(engine, "rearrange", lambda kv, rows: kv_cache.compact([(kv, rows)]))
    if name == "rows in one copy":
        return patch.object(kv_cache, "is_unpadded", lambda _: False)
    return nullcontext()


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for each number of beams and each thing left out."""
    model, task, cache = load_model("embedded", dtype="float32"), open_task("extract", FIELDS), VisionFeatureCache()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = draw_receipts(Path(folder), SEED, max(RECEIPTS.values()))
        samples = [Sample(str(number), (Media("image", Path(file)),)) for number, file in enumerate(files)]
        predict(model, task, samples, Predict(max_new_tokens=200), cache=cache)
        for beams, count in RECEIPTS.items():
            settings = Predict(max_new_tokens=200, num_beams=beams)
            seconds: dict[str, list[float]] = {name: [] for name in WAYS}
            texts: dict[str, list[str]] = {}
            for _ in range(rounds):
                for name in WAYS:
                    with without(name):
                        watch = Stopwatch()
                        replies = predict(model, task, samples[:count], settings, cache=cache)
                        seconds[name].append(watch.cpu_seconds())
                    texts[name] = [reply.text for reply in replies]
                    print(f"beams {beams}, without {name}: {seconds[name][-1]:.2f}", file=sys.stderr, flush=True)
            best = {name: min(values) for name, values in seconds.items()}
            rows += [
                {"beams": beams, "left_out": name, "instead": WAYS[name], "to_ours": best[name] / best["ours"],
                 "same_replies": texts[name] == texts["ours"], "seconds_a_receipt": [value / count for value in values]}
                for name, values in seconds.items()
            ]  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    torch.set_num_threads(1)
    rows = measure(parser.parse_args().rounds)
    for row in rows:
        print(
            f"beams {row['beams']}, without {row['left_out']}: {row['to_ours']:.2f} times, same: {row['same_replies']}"
        )
    write_json(RESULTS, {"machine": describe_machine(), "rows": rows})


if __name__ == "__main__":
    main()
