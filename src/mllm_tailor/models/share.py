"""A second model over the same weights, so that several adapters fit into the memory of one base."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from mllm_tailor.models.model import LoadedModel


def share_weights(model: LoadedModel) -> LoadedModel:
    """A copy of a model's modules whose tensors are those of `model`: a method can be applied to it alone.

    Parameters are new objects over the same memory. A method that loads weights of the model itself gives the copy's
    parameters other memory (`weight.data = ...`) and leaves the original as it is.
    """
    network: nn.Module = model.model
    memo: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    for weight in network.parameters():
        plain = type(weight) is nn.Parameter
        memo[id(weight)] = nn.Parameter(weight.data, requires_grad=False) if plain else weight  # packed: never trained
    return replace(model, model=copy.deepcopy(network, memo), applied=None)
