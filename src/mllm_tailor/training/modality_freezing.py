"""Which parts a kind of samples moves: pictures may teach the eyes and texts the language, in one training.

Steps hold samples of one kind (`train.one_modality`), so the weights that hold still in a step get no gradient at all:
optimizers pass them over, moments, decay and all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.methods.target_modules import under
from mllm_tailor.models import LoadedModel
from mllm_tailor.training.trainable import trained_weights

Still = Mapping[str, Sequence[nn.Parameter]]  # kind of samples -> weights that hold still


def frozen_by_modality(model: LoadedModel, wanted: Mapping[str, Sequence[str]], kinds: Sequence[str]) -> Still:
    """For every kind of samples named in `train.modality_parts` the trained weights outside its parts.

    Raises:
        RecipeError: for a kind no sample is of, a part that is not trained, or a kind that would move nothing.
    """
    weights = trained_weights(model)
    found: dict[str, list[nn.Parameter]] = {}
    for kind, parts in wanted.items():
        if kind not in kinds:
            raise RecipeError(f"train.modality_parts: no sample is of the kind `{kind}` — {nearest(kind, set(kinds))}")
        prefixes = [prefix for part in parts for prefix in model.family.parts.get(part, ())]
        moving = {name for name in weights if under(_own_name(name), prefixes)}
        if not moving:
            raise RecipeError(
                f"train.modality_parts.{kind}: none of {', '.join(parts) or 'no parts'} is trained — name parts that "
                "`method` trains"
            )
        found[kind] = [weight for name, weight in weights.items() if name not in moving]
    return found


def _own_name(name: str) -> str:
    """A weight's name as the model has it, whatever PEFT put in front."""
    return name.removeprefix("base_model.model.")


@contextmanager
def frozen(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within, these weights take part and get no gradient."""
    moved = [weight for weight in weights if weight.requires_grad]
    for weight in moved:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in moved:
            weight.requires_grad_(True)
