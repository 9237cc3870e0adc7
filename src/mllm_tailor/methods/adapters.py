"""Inject PEFT adapters into a model in place; read and write their weights in PEFT's file layout.

The model is not wrapped: names, parts and `generate` stay the same, parts can carry different kinds of adapters, and
saved folders still load with `PeftModel.from_pretrained`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm_tailor.core.errors import ModelError
from mllm_tailor.methods import bottleneck_layers
from mllm_tailor.methods.base import InjectedAdapter

ADAPTER = "default"  # PEFT's name for the only adapter in a model
PREFIX = "base_model.model."  # what PEFT's files put before the names of modules
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def inject(model: nn.Module, config: PeftConfig) -> InjectedAdapter:
    """Inject an adapter into the modules that `config` names; its weights are float32 whatever the base's dtype."""
    before = {name for name, _ in model.named_parameters()}
    frozen_before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    with warnings.catch_warnings():
        for words in ("tie_word_embeddings", "Already found a `peft_config`", "vera_A and vera_B"):
            warnings.filterwarnings("ignore", message=f".*{words}")
        with bottleneck_layers.register():
            kind: Any = config.peft_type
            tuner = PEFT_TYPE_TO_TUNER_MAPPING[kind](model, config, ADAPTER)
    added = {
        name: weight
        for name, weight in model.named_parameters()
        if name not in before and name.replace(".base_layer.", ".") not in before
    }
    for name, weight in added.items():
        if weight.is_floating_point():
            weight.data = weight.data.float()
        frozen_before[name] = weight.requires_grad
    for name, weight in model.named_parameters():  # PEFT froze what earlier methods train
        weight.requires_grad_(frozen_before.get(name, frozen_before.get(name.replace(".base_layer.", "."), False)))
    moving = tuple(name for name, weight in added.items() if weight.requires_grad)
    return InjectedAdapter(model, moving, config, tuner)


def tuner_layers(model: nn.Module) -> dict[str, Any]:
    """Every module that carries an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def adapter_state(attached: InjectedAdapter) -> dict[str, Tensor]:
    """The adapter's weights under PEFT's names, without the weights of other adapters in the model."""
    own = set(attached.tuner.targeted_module_names)
    model: Any = attached.model
    present = {
        name: tensor for name, tensor in _saved_tensors(model).items() if any(name.startswith(f"{key}.") for key in own)
    }
    model.peft_config = {ADAPTER: attached.config}
    with bottleneck_layers.register():
        state: dict[str, Tensor] = get_peft_model_state_dict(
            model, state_dict=present, adapter_name=ADAPTER, save_embedding_layers=False
        )
        return state


def _saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What `state_dict` returns, which would slice the gathered weights of a sharded model again."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in module._non_persistent_buffers_set:
                tensors[f"{prefix}.{name}" if prefix else name] = buffer
    return tensors


def write_adapter(folder: Path, config: PeftConfig, state: Mapping[str, Tensor]) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    was = config.inference_mode
    config.inference_mode = True
    config.save_pretrained(str(folder))
    config.inference_mode = was


def read_adapter(model: nn.Module, folder: Path) -> InjectedAdapter:
    """Inject a saved adapter into the model.

    Raises:
        ModelError: when its files are missing, damaged or do not fit the shapes of the model.
    """
    try:
        with bottleneck_layers.register():
            config = PeftConfig.from_pretrained(str(folder))
        state = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: the adapter is missing or damaged ({type(error).__name__}) — train again"
        ) from None
    try:
        return restore(model, config, {name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    except (RuntimeError, KeyError) as error:
        raise ModelError(f"{folder}: the adapter does not fit this model — load the base it was trained on") from error


def restore(model: nn.Module, config: PeftConfig, state: Mapping[str, Tensor]) -> InjectedAdapter:
    """Inject an adapter with the given weights into the model.

    Raises:
        RuntimeError, KeyError: when a weight is not in the model or has another shape.
    """
    config.inference_mode = False
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # an expensive initialisation would only be overwritten
    attached = inject(model, config)
    adapted: Any = model
    adapted.peft_config = {ADAPTER: attached.config}
    with bottleneck_layers.register():
        result: Any = set_peft_model_state_dict(adapted, dict(state), ADAPTER)
    if result.unexpected_keys:
        raise KeyError(result.unexpected_keys[0])
    return attached
