"""The modules and shapes of a checkpoint without its weights: enough to say what a method would train, in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForMultimodalLM

from mllm_tailor.models.families import Family
from mllm_tailor.models.load import find_family, find_native, native_config


@dataclass(frozen=True)
class MetaModel:
    """What a method looks at to count what it will train."""

    model: Any  # transformers.PreTrainedModel on the meta device
    family: Family


def load_meta_model(path: str | Path, revision: str | None = None) -> MetaModel:
    """Of `embedded`, a folder or a hub id.

    Raises:
        ModelError: as opening it would.
    """
    checkpoint = find_native(path, revision)
    family = find_family(checkpoint)
    stated = checkpoint.config[f"{family.inner}_config"] if family.inner else checkpoint.config
    with torch.device("meta"):
        model = (AutoModel if family.compares else AutoModelForMultimodalLM).from_config(native_config(stated))
    return MetaModel(model, family)
