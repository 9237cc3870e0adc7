"""The modules and shapes of a checkpoint without its weights: enough to count what a method trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from mllm_tailor.models.families import Family
from mllm_tailor.models.load import find_family, find_native
from mllm_tailor.models.native import build_empty, own_config


@dataclass(frozen=True)
class MetaModel:
    """A model on the meta device, with its family."""

    model: PreTrainedModel
    family: Family


def load_meta_model(path: str | Path, revision: str | None = None) -> MetaModel:
    """The model of `embedded`, `tiny`, a folder or a hub id, without weights.

    Raises:
        ModelError: as loading it would.
    """
    checkpoint = find_native(path, revision)
    family = find_family(checkpoint)
    config = own_config(checkpoint, family)
    return MetaModel(build_empty(config, checkpoint.folder, dual_encoder=family.compares), family)
