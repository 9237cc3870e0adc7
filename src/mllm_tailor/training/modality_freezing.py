"""Freeze model components per modality: images may update the vision tower, text only the language model.

Steps hold samples of one modality (`train.one_modality`), so weights that are frozen in a step get no gradient, and
optimizers skip them entirely, moments and weight decay included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.methods.target_modules import under
from mllm_tailor.models import LoadedModel
from mllm_tailor.training.trainable import trained_weights

FrozenByModality = Mapping[str, Sequence[nn.Parameter]]


def frozen_by_modality(
    model: LoadedModel, modality_parts: Mapping[str, Sequence[str]], modalities: Sequence[str]
) -> FrozenByModality:
    """For every modality named in `train.modality_parts`, the trained weights outside its parts.

    Raises:
        RecipeError: for a modality no sample has, a part that is not trained, or a modality that would train nothing.
    """
    weights = trained_weights(model)
    frozen_weights: dict[str, list[nn.Parameter]] = {}
    for modality, parts in modality_parts.items():
        if modality not in modalities:
            hint = nearest(modality, set(modalities))
            raise RecipeError(f"train.modality_parts: no sample has the modality `{modality}` — {hint}")
        prefixes = [prefix for part in parts for prefix in model.family.parts.get(part, ())]
        trained = {name for name in weights if under(_base_name(name), prefixes)}
        if not trained:
            raise RecipeError(
                f"train.modality_parts.{modality}: none of {', '.join(parts) or 'no parts'} is trained — name parts "
                "that `method` trains"
            )
        frozen_weights[modality] = [weight for name, weight in weights.items() if name not in trained]
    return frozen_weights


def _base_name(name: str) -> str:
    """A weight's name in the base model, without PEFT's prefix."""
    return name.removeprefix("base_model.model.")


@contextmanager
def frozen(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within, these weights get no gradient."""
    changed = [weight for weight in weights if weight.requires_grad]
    for weight in changed:
        weight.requires_grad = False
    try:
        yield
    finally:
        for weight in changed:
            weight.requires_grad_()
