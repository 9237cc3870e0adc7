"""Load a checkpoint by name: native transformers classes, safetensors weights, no code of the checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, BitsAndBytesConfig, PreTrainedConfig
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from mllm_tailor.core.device import fast_bf16, pick_device
from mllm_tailor.core.errors import ModelError, nearest
from mllm_tailor.core.manifest import verify_export
from mllm_tailor.core.optional import need
from mllm_tailor.models.checkpoint import ADAPTER_CONFIG, Checkpoint, reading
from mllm_tailor.models.convert import ORIGINAL, native_folder
from mllm_tailor.models.families import FAMILIES, OTHER_LAYOUTS, Family, guess_family, linear_names
from mllm_tailor.models.input_settings import InputSettings
from mllm_tailor.models.inputs.hf_processor import open_stock_processor
from mllm_tailor.models.inputs.internvl_processor import (
    check_fit,
    choose_reflow,
    open_processor,
    set_tile,
    stated_tiles,
)
from mllm_tailor.models.inputs.speech_units import add_tokens, find_codebook
from mllm_tailor.models.model import LoadedModel
from mllm_tailor.models.native import (
    auto_class,
    build_empty,
    described_weights,
    native_config,
    own_config,
    own_settings,
)
from mllm_tailor.models.patches import cpu_attention, mllama, original_internvl, phi4
from mllm_tailor.models.resolve import BUNDLED, find_checkpoint
from mllm_tailor.models.template_check import check_template

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = (
    500_000_000  # weights; up to this size float32 is kept, since bf16 weights round away relative updates below 1/256
)
LARGEST_RATIO = 2  # of weights described by config.json to weights in the files: tied weights are stored once
# transformers applies an adapter beside the weights; there is none in a folder that cannot exist.
NO_ADAPTER = {"subfolder": "no adapter\0"}


def load_model(
    path: str | Path = "embedded",
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    quantize: str | None = None,
    quantize_skip: Sequence[str] = (),
    inputs: InputSettings | None = None,
    mixed_precision: bool = False,
) -> LoadedModel:
    """Load `embedded`, `tiny`, a folder or a hub id.

    `dtype` is auto, float32, bfloat16 or float16, as a string or torch's own. auto keeps small models in float32 and
    uses bfloat16 for others where the hardware supports it. `quantize` converts the linear layers to 4 bits (NF4 with
    double quantisation, arXiv 2305.14314) or 8, except the head and the parts or module names in `quantize_skip`.
    `mixed_precision` runs the vision tower under bf16 autocast (the weights keep their dtype), as training does where
    the hardware supports it.

    Raises:
        ModelError: naming the file and what to do.
    """
    inputs = inputs or InputSettings()
    checkpoint = find_native(path, revision)
    verify_export(checkpoint.folder)
    device = pick_device(device)
    chosen = _dtype(dtype, checkpoint.parameters, device)
    family = find_family(checkpoint)
    _name_adapters(checkpoint, family)
    config = own_config(checkpoint, family)
    processor: Any = open_processor(checkpoint) if family.tiled else open_stock_processor(checkpoint.folder, family)
    skipped = [name for part in ("head", *quantize_skip) for name in family.parts.get(part, (rf"(?:.*\.)?{part}",))]
    _check_template(checkpoint, family, processor)
    _check_feature_layer(checkpoint, config)
    model = _load(
        checkpoint, family, config, chosen, device, _quantization(quantize, [*skipped, *family.unused_modules], device)
    )
    loaded = _with_inputs(checkpoint, family, model, processor, inputs)
    return replace(loaded, device=device, dtype=chosen, quantize=quantize, mixed_precision=mixed_precision)


def load_without_weights(
    path: str | Path, *, revision: str | None = None, inputs: InputSettings | None = None
) -> LoadedModel:
    """What turns samples into inputs, around a model on the meta device: enough to encode and to count tokens.

    Raises:
        ModelError: as `load_model` would.
    """
    checkpoint = find_native(path, revision)
    family = find_family(checkpoint)
    config = own_config(checkpoint, family)
    processor: Any = open_processor(checkpoint) if family.tiled else open_stock_processor(checkpoint.folder, family)
    model = build_empty(config, checkpoint.folder, dual_encoder=family.compares)
    return _with_inputs(checkpoint, family, model, processor, inputs or InputSettings())


def _with_inputs(
    checkpoint: Checkpoint, family: Family, model: Any, processor: Any, inputs: InputSettings
) -> LoadedModel:
    """The model with everything that decides how samples are turned into its inputs."""
    if family.tiled:
        check_fit(checkpoint, model, processor)
        if inputs.tile_size is not None:
            set_tile(processor, model.config, inputs.tile_size)
    elif inputs.tile_size is not None:
        raise ModelError(f"`model.tile_size`: {family.title} has tiles of a fixed size — leave the setting out")
    codebook = find_codebook(inputs.units, checkpoint.folder) if inputs.units else None
    if codebook is not None:
        add_tokens(model, processor.tokenizer, len(codebook.centroids))
    return LoadedModel(
        model=model,
        processor=processor,
        family=replace(family, linear_names=linear_names(model, family.parts)),
        tiles=inputs.tiles or stated_tiles(processor),
        system=inputs.system if inputs.system is not None else getattr(processor, "system", None),
        device=model.device,
        dtype=model.dtype,
        folder=checkpoint.folder,
        path=checkpoint.path,
        revision=checkpoint.revision,
        frames=inputs.frames,
        codebook=codebook,
        trim=inputs.trim,
        reflow=choose_reflow(inputs.reflow, family, processor),
    )


def find_native(path: str | Path, revision: str | None = None) -> Checkpoint:
    """The checkpoint in the native layout; an original InternVL is converted once."""
    checkpoint = find_checkpoint(path, revision)
    if checkpoint.model_type != ORIGINAL:
        return checkpoint
    copy = find_checkpoint(native_folder(checkpoint))
    return replace(copy, path=checkpoint.path, revision=checkpoint.revision)


def find_family(checkpoint: Checkpoint) -> Family:
    """The description of this kind of model, or a guess from its modules."""
    kind = checkpoint.model_type
    if kind in FAMILIES:
        return FAMILIES[kind]
    if kind in OTHER_LAYOUTS:
        raise ModelError(f"{checkpoint.path}: {kind} is {OTHER_LAYOUTS[kind]}")
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{checkpoint.path}: unknown model type {kind!r} — {nearest(kind, FAMILIES)}")
    config = native_config(checkpoint.config, checkpoint.folder)
    try:
        model = build_empty(config, checkpoint.folder)
    except ModelError as error:
        if isinstance(error.__cause__, ValueError):  # transformers has no such class for this configuration
            raise ModelError(
                f"{checkpoint.path}: {kind} reads no images or audio — {nearest(kind, FAMILIES)}"
            ) from None
        raise
    return guess_family(kind, model)


def _name_adapters(checkpoint: Checkpoint, family: Family) -> None:
    """Warn about adapters in the folder: only the model itself is loaded."""
    present = [name for name in family.unused_adapters if (checkpoint.folder / name).is_dir()]
    if (checkpoint.folder / ADAPTER_CONFIG).is_file():
        present.append(f"the adapter beside the weights ({ADAPTER_CONFIG})")
    if present:
        logger.warning("%s: not applied: %s (docs/models.md)", checkpoint.path, " and ".join(present))


def _check_template(checkpoint: Checkpoint, family: Family, processor: Any) -> None:
    """Try a template that is not ours in a process with limits."""
    template = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(template, str) and template != family.template and checkpoint.path not in BUNDLED:
        check_template(template, processor.tokenizer, checkpoint.folder)


def _check_feature_layer(checkpoint: Checkpoint, config: PreTrainedConfig) -> None:
    """Refuse a layer of the vision tower to take features from that the tower does not have.

    Raises:
        ModelError: naming the setting.
    """
    stated = getattr(config, "vision_feature_layer", None)
    count = getattr(getattr(config, "vision_config", None), "num_hidden_layers", None)
    if stated is None or not isinstance(count, int):
        return
    layers = stated if isinstance(stated, list | tuple) else [stated]
    if any(not isinstance(layer, int) or not -count - 1 <= layer <= count for layer in layers):
        raise ModelError(
            f"{checkpoint.folder / 'config.json'}: `vision_feature_layer` is {str(stated)[:40]}, and the vision tower "
            f"has {count} layers — copy or download it again"
        )


def _dtype(wanted: str | torch.dtype, parameters: int, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        name = str(wanted).removeprefix("torch.")
        if name not in DTYPES:
            raise ModelError(f"dtype {name!r} — {nearest(name, ['auto', *DTYPES])}")
        return DTYPES[name]
    return torch.bfloat16 if parameters > SMALL and fast_bf16(device) else torch.float32


def _quantization(kind: str | None, skipped: list[str], device: torch.device) -> BitsAndBytesConfig | None:
    if kind is not None:
        need("bitsandbytes", "quantize", f"a base quantised to {kind}", ModelError)
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if fast_bf16(device) else torch.float32,
            llm_int8_skip_modules=skipped,
        )
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    if kind is not None:
        raise ModelError(f"quantize {kind!r} — {nearest(kind, ['nf4', 'int8'])}")
    return None


def _load(
    checkpoint: Checkpoint,
    family: Family,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None,
) -> Any:
    """The model with all its weights; missing weights and wrong shapes are errors."""
    if checkpoint.parameters < SMALL:
        disable_progress_bar()
    else:
        enable_progress_bar()
    options: dict[str, Any] = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
    if family.inner:
        options["key_mapping"] = {rf"^{family.inner}\.": ""}
    _check_size(checkpoint, family)
    with reading(checkpoint.folder, "the weights do not fit config.json", "download it again"):
        model, report = auto_class(dual_encoder=family.compares).from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation="sdpa",
            adapter_kwargs=NO_ADAPTER,
            **options,
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{checkpoint.folder}: {len(missing)} weights are missing, the first is {missing[0]} — download it again"
        )
    _install_patches(model, family)
    if quantization:
        _keep_scales(model)
        return model.eval()
    return model.to(device).eval()


def _check_size(checkpoint: Checkpoint, family: Family) -> None:
    """Refuse a configuration that describes a far larger model than the files hold, before memory is allocated.

    Raises:
        ModelError: naming both sizes.
    """
    stated = json.dumps(own_settings(checkpoint, family))
    described = described_weights(stated, checkpoint.folder, dual_encoder=family.compares)
    if described > LARGEST_RATIO * checkpoint.parameters:
        raise ModelError(
            f"{checkpoint.folder / 'config.json'}: describes {described:,} weights, but the files hold "
            f"{checkpoint.parameters:,} — they belong to different checkpoints; download it again"
        )


def _install_patches(model: Any, family: Family) -> None:
    cpu_attention.install(model)
    if hasattr(model.config, "ps_version"):
        original_internvl.install(model.model)
    if family.masks_empty_images:
        mllama.install(model.model)
    if family.encodes_per_sample:
        phi4.install(model)


def _keep_scales(model: Any) -> None:
    """Disable repacking of 4-bit layers.

    On CPUs with AVX-512, bitsandbytes repacks them with coarser scales at their first evaluation, permanently: training
    after an evaluation would continue with different weights, or fail.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
