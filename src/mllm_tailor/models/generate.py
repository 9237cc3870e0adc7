"""transformers' own greedy decoding: the reference that the generation engine and saved folders are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.sample import Sample
from mllm_tailor.models.encode import prompt_inputs
from mllm_tailor.models.model import LoadedModel


@torch.no_grad()
def generate(
    samples: Sequence[Conversation | Sample] | Sample, model: LoadedModel, max_new_tokens: int = 128, batch: int = 8
) -> list[str]:
    """Greedy replies, `batch` samples at a time, in the order given; a single sample gives a list with its reply."""
    samples = [samples] if isinstance(samples, Sample) else samples
    stop_ids, was_training = sorted(model.stop_ids), model.model.training
    model.model.eval()
    replies: list[str] = []
    for start in range(0, len(samples), batch):
        inputs = prompt_inputs(samples[start : start + batch], model)
        ids = model.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=model.pad_id,
        )
        replies += [model.decode(row) for row in ids[:, inputs["input_ids"].shape[1] :].tolist()]
    model.model.train(was_training)
    return replies
