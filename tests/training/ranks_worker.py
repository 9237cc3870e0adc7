"""One of several processes that train together. Run through torchrun by test_distributed.py."""

from __future__ import annotations

import sys
from pathlib import Path

from fixtures.muon_steps import muon_steps
from fixtures.small_job import make_conversations, prepare, train
from safetensors.torch import save_file

from mllm_tailor.training.distributed import rank, world_size


def main() -> None:
    """Arguments: model folder, pictures, folder of the run."""
    model_folder, pictures, folder = map(Path, sys.argv[1:])
    samples = make_conversations(pictures, 10)
    model, method, recipe = prepare(
        model_folder, {"name": "lora", "rank": 4}, optimizer="sgd", micro_batch_size=1, learning_rate=0.5, batch_size=4
    )
    result = train(model, method, samples, recipe, folder, evaluate=lambda: {"score": 1.0})
    assert world_size() == 2
    assert result.steps == 6
    save_file(muon_steps(share=1 / world_size()), folder / f"muon-{rank()}.safetensors")


if __name__ == "__main__":
    main()
