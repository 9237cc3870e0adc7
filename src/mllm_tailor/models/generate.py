"""transformers' own greedy decoding: the reference that the generation engine and saved folders are compared with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
import torch

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.sample import Sample
from mllm_tailor.models.encode import encode, prompt_inputs
from mllm_tailor.models.model import LoadedModel


@torch.no_grad()
def generate(
    samples: Sequence[Conversation | Sample] | Sample, model: LoadedModel, max_new_tokens: int = 128, batch: int = 8
) -> list[str]:
    """Greedy replies, `batch` samples at a time, in the order given; a single sample counts as a list of one."""
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


@torch.no_grad()
def image_features(samples: Sequence[Conversation | Sample], model: LoadedModel) -> np.ndarray:
    """(samples, width) float32: projected features of a sample's images, averaged over tiles and patches."""
    # Most classes have a method for it; where there is none, the vision tower is called.
    reader = getattr(model.model, "get_image_features", None)
    reader = reader or model.model.get_submodule(model.family.parts["vision"][0])
    accepted = inspect.signature(getattr(reader, "forward", reader)).parameters
    rows = []
    for sample in samples:
        media = encode(sample.unlabelled(), model).media
        names = {name: name if name in accepted else name.removesuffix("_images") for name in media}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.mixed_precision):
            output = reader(**{key: media[name].to(model.device) for name, key in names.items() if key in accepted})
        features = output["pooler_output" if "pooler_output" in output else "last_hidden_state"]
        # (tiles, tokens, width), or a list with an entry per image
        images = features if isinstance(features, (list, tuple)) else [features]
        rows.append(torch.cat([image.flatten(0, -2) for image in images]).float().mean(dim=0).cpu().numpy())
    return np.stack(rows)
