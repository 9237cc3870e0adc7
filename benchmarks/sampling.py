"""Sampled replies a second beside greedy ones, by the built-in engine at equal batch.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --pages 4 --batch 16

The embedded model reads drawn receipts: one page a group, and as many replies to it as the batch has rows, once sampled
and once greedy, constrained to the schema and unconstrained. Both share the pass over page and question, so the time is
that of decoding. CPU seconds of one thread; the ratio is by replies a second, and by tokens a second since sampled
replies may be longer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import write_json
from mllm_tailor.data import read_samples
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.generation.per_field import grammars_of
from mllm_tailor.generation.predictor import vocabulary_of
from mllm_tailor.generation.sampling import ReplyRequest, Sampling, sample_replies
from mllm_tailor.models import LoadedModel, load_model
from mllm_tailor.recipe import Predict
from mllm_tailor.synthetic.folder import draw_folder
from mllm_tailor.tasks import open_task

RESULT = Path(__file__).parent / "results" / "sampling.json"
TASK = {"company": "string", "date": "date", "total": "amount"}


def greedy(rows: Any, logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, chosen as `Sampling` chooses."""
    return logits.argmax(-1)


def measure(
    model: LoadedModel, pages: list[Conversation], batch: int, *, constrained: bool, sampled: bool, limit: int
) -> dict[str, float]:
    """CPU seconds, replies and tokens."""
    vocabulary = vocabulary_of(model)
    settings = Predict(max_new_tokens=limit)
    grammar = grammars_of(open_task("extract", TASK), settings, vocabulary)[""] if constrained else None
    choose: Any = Sampling(1.0, 1.0, seed=1) if sampled else greedy
    request = ReplyRequest(batch, choose, limit, batch, grammar)
    cache = VisionFeatureCache()
    sample_replies(model, pages, ReplyRequest(1, choose, 2, batch, grammar), cache)  # vision side and kernels
    started = time.process_time()
    replies = [reply for group in sample_replies(model, pages, request, cache) for reply in group]
    seconds = time.process_time() - started
    tokens = sum(len(reply.tokens) for reply in replies)
    return {
        "seconds": seconds, "replies": len(replies), "tokens": tokens,
        "replies_per_second": len(replies) / seconds, "tokens_per_second": tokens / seconds,
    }  # fmt: skip


def main() -> None:
    """Draw, measure, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--limit", type=int, default=64, help="tokens of a reply")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("embedded", dtype="float32", device="cpu")
    model.model.eval()
    task = open_task("extract", TASK)
    with tempfile.TemporaryDirectory() as folder:
        draw_folder(Path(folder), options.pages, 1, seed=11)
        samples = read_samples(folder).samples[: options.pages]
        pages = [task.phrase(sample.unlabelled()) for sample in samples]
        rows: dict[str, Any] = {}
        for constrained in (True, False):
            name = "constrained" if constrained else "unconstrained"
            kinds = {
                kind: measure(
                    model, pages, options.batch, constrained=constrained, sampled=kind == "sampled", limit=options.limit
                )
                for kind in ("greedy", "sampled")
            }
            rows[name] = kinds | {
                f"{unit}_ratio": kinds["sampled"][f"{unit}_per_second"] / kinds["greedy"][f"{unit}_per_second"]
                for unit in ("replies", "tokens")
            }
            print(f"{name:14} sampled / greedy: {rows[name]['replies_ratio']:.2f} of the replies a second, "
                  f"{rows[name]['tokens_ratio']:.2f} of the tokens")  # fmt: skip
    sizes = {"pages": options.pages, "batch": options.batch, "limit": options.limit}
    write_json(RESULT, {"machine": describe_machine(), **sizes, "decoding": rows})


if __name__ == "__main__":
    main()
