"""Open a checkpoint by name: native transformers classes, safetensors weights, no code of the checkpoint's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.markup import escape
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForMultimodalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from mllm_tailor.core.device import fast_bf16, pick_device
from mllm_tailor.core.errors import ModelError, nearest
from mllm_tailor.core.progress import console
from mllm_tailor.models.checkpoint import Checkpoint
from mllm_tailor.models.convert import ORIGINAL, native_folder
from mllm_tailor.models.families import FAMILIES, OTHER_LAYOUTS, Family, guess_family, linear_names
from mllm_tailor.models.inputs.hf_processor import open_stock_processor
from mllm_tailor.models.inputs.internvl_processor import check_fit, open_processor, set_tile, stated_tiles
from mllm_tailor.models.inputs.speech_units import add_tokens, find_codebook
from mllm_tailor.models.model import LoadedModel
from mllm_tailor.models.patches import cpu_attention, mllama, original_internvl, phi4
from mllm_tailor.models.resolve import find_checkpoint
from mllm_tailor.recipe.schema import Tiles, Units

NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 500_000_000  # weights; up to here float32 is kept, since updates of bf16 weights below 1/256 round away


def load_model(
    path: str | Path = "embedded",
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    tiles: Tiles | None = None,
    system: str | None = None,
    frames: int = 8,
    tile_size: int | None = None,
    units: Units | None = None,
    trim: bool = False,
    mixed: bool = False,
    quantize: Literal["nf4", "int8"] | None = None,
    quantize_skip: Sequence[str] = (),
) -> LoadedModel:
    """Open `embedded`, a folder or a hub id.

    `dtype` is auto, float32, bfloat16 or float16, as a word or torch's own. auto keeps small models in float32 and
    takes bfloat16 for others where the hardware has it. `quantize` packs the linear layers into 4 bits (NF4 with double
    quantisation, arXiv 2305.14314) or 8, except the head and the parts or module names in `quantize_skip`. `tiles` and
    `system` stand in for the checkpoint's own.
    A clip is shown as `frames` pictures. `trim` cuts blank margins off pictures and clips before they are tiled.
    `mixed` lets the vision side compute in bf16 (the weights keep their format), as training does where the hardware
    has it. `tile_size` is another side of a tile in pixels, for which position embeddings are interpolated;
    `units` turns recordings into speech-unit tokens.

    Raises:
        ModelError: naming the file and what to do.
    """
    checkpoint = find_native(path, revision)
    place = pick_device(device)
    number = _number_format(dtype, checkpoint.parameters, place)
    family = find_family(checkpoint)
    if left := [name for name in family.left if (checkpoint.folder / name).is_dir()]:
        console.print(f"[yellow]{escape(checkpoint.path)}: {' and '.join(left)} are not applied (docs/models.md)")
    processor = open_processor(checkpoint) if family.tiled else open_stock_processor(checkpoint.folder, family)
    kept = [name for word in ("head", *quantize_skip) for name in family.parts.get(word, (rf"(?:.*\.)?{word}",))]
    kept += family.idle
    model = _load(checkpoint, family, number, place, _quantization(quantize, kept, place))
    if family.tiled:
        check_fit(checkpoint, model, processor)
        if tile_size is not None:
            set_tile(processor, model.config, tile_size)
    codebook = find_codebook(units, checkpoint.folder) if units is not None else None
    if codebook is not None:
        add_tokens(model, processor.tokenizer, len(codebook.centroids))
    return LoadedModel(
        model=model,
        processor=processor,
        family=replace(family, linear_names=linear_names(model, family.parts)),
        tiles=tiles or stated_tiles(processor),
        system=system if system is not None else getattr(processor, "system", None),
        device=place,
        dtype=number,
        folder=checkpoint.folder,
        path=checkpoint.path,
        revision=checkpoint.revision,
        quantize=quantize,
        frames=frames,
        codebook=codebook,
        trim=trim,
        mixed=mixed,
    )


def find_native(path: str | Path, revision: str | None) -> Checkpoint:
    """The checkpoint in the native layout; an original InternVL is converted once."""
    checkpoint = find_checkpoint(path, revision)
    if checkpoint.config.get("model_type") != ORIGINAL:
        return checkpoint
    copy = find_checkpoint(native_folder(checkpoint))
    return replace(copy, path=checkpoint.path, revision=checkpoint.revision)


def find_family(checkpoint: Checkpoint) -> Family:
    """What is known of this kind of model, or can be seen in its modules."""
    kind = str(checkpoint.config.get("model_type"))
    if kind in FAMILIES:
        return FAMILIES[kind]
    if kind in OTHER_LAYOUTS:
        raise ModelError(f"{checkpoint.path}: {kind} is {OTHER_LAYOUTS[kind]}")
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{checkpoint.path}: unknown model type {kind!r} — {nearest(kind, FAMILIES)}")
    try:
        with torch.device("meta"):
            return guess_family(kind, AutoModelForMultimodalLM.from_config(native_config(checkpoint.config)))
    except ValueError:
        raise ModelError(
            f"{checkpoint.path}: {kind} takes no pictures or recordings — {nearest(kind, FAMILIES)}"
        ) from None


def _number_format(wanted: str | torch.dtype, parameters: int, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        name = str(wanted).removeprefix("torch.")
        if name not in NUMBERS:
            raise ModelError(f"dtype {name!r} — {nearest(name, ['auto', *NUMBERS])}")
        return NUMBERS[name]
    return torch.bfloat16 if parameters > SMALL and fast_bf16(device) else torch.float32


def _quantization(kind: str | None, kept: list[str], device: torch.device) -> BitsAndBytesConfig | None:
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if fast_bf16(device) else torch.float32,
            llm_int8_skip_modules=kept,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept) if kind == "int8" else None


def _load(
    checkpoint: Checkpoint,
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None,
) -> Any:
    """The model with all its weights; missing and ill-shaped ones are errors, not random numbers."""
    (disable_progress_bar if checkpoint.parameters < SMALL else enable_progress_bar)()
    options: dict[str, Any] = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
    stated = checkpoint.config
    if family.inner:
        stated = stated[f"{family.inner}_config"]
        options["key_mapping"] = {rf"^{family.inner}\.": ""}
    try:
        model, report = (AutoModel if family.compares else AutoModelForMultimodalLM).from_pretrained(
            checkpoint.folder,
            config=native_config(stated),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation="sdpa",
            **options,
        )
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{checkpoint.folder}: the weights do not fit config.json ({reason}) — download it again"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{checkpoint.folder}: {len(missing)} weights are missing, the first is {missing[0]} — download it again"
        )
    cpu_attention.install(model)
    if hasattr(model.config, "ps_version"):
        original_internvl.install(model.model)
    if family.blanks:
        mllama.install(model.model)
    if family.apart:
        phi4.install(model)
    if quantization:
        _keep_scales(model)
        return model.eval()
    return model.to(device).eval()


def _keep_scales(model: torch.nn.Module) -> None:
    """Keep 4-bit layers as they are.

    On CPUs with AVX-512 their first evaluation would repack them with coarser scales, for good: training after an
    evaluation would go on with other weights than training without one, or fail.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def native_config(stated: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration object, without what may name code to be fetched and run (auto_map, attention kernels)."""

    def clean(values: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in values.items() if key != "auto_map" and "_implementation" not in key}
        return {key: clean(value) if isinstance(value, Mapping) else value for key, value in kept.items()}

    return CONFIG_MAPPING[stated["model_type"]].from_dict(clean(stated))
