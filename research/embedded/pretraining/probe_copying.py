"""The gap apart: how well a language model copies words that nobody has seen, perfect symbols given.

python -m pretraining.probe_copying copy --checkpoints FOLDER     # the reader's language model: line after line
python -m pretraining.probe_copying ../../src/mllm_tailor/models/bundled/embedded    # the shipped one: whole pages

The same receipts of layouts never trained on for both, names and streets replaced by random letters. Printed are shares
of characters right when those before are given, and the share of pages whose value is right to the letter.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from pretraining import checkpoint, copying, flow_language
from pretraining.probe_language import open_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a checkpoint of the stage `copy`, or a model folder")
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--count", type=int, default=24)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.checkpoints:
        checkpoint.FOLDER = arguments.checkpoints
    if Path(arguments.model).is_dir():
        model, symbols = open_checkpoint(arguments.model)
        parts = nn.ModuleDict({"language": model.model.language_model, "lm_head": model.lm_head, "symbols": symbols})
        samples = list(copying.page_samples(arguments.count))
    else:
        _, parts = flow_language.build()
        average = torch.optim.swa_utils.AveragedModel(parts)
        checkpoint.load(arguments.model, {"average": average})
        parts, samples = average.module, list(copying.flow_samples(arguments.count))
    print(" ".join(f"{key} {value:.3f}" for key, value in copying.shares(parts.eval(), samples).items()))


if __name__ == "__main__":
    main()
