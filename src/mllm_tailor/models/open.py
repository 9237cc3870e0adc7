"""Open a checkpoint by name: native transformers classes, safetensors weights, no code of the checkpoint's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GotOcr2ImageProcessorPil,
    PreTrainedConfig,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from mllm_tailor.core.device import fast_bf16, pick_device
from mllm_tailor.core.errors import DataError, ModelError, nearest
from mllm_tailor.core.files import read_json
from mllm_tailor.models.checkpoint import Checkpoint, find_checkpoint
from mllm_tailor.models.convert import ORIGINAL, native_folder, use_first_pixel_shuffle
from mllm_tailor.models.families import FAMILIES, linear_names
from mllm_tailor.models.opened import OpenModel
from mllm_tailor.models.processor import InternVLProcessor
from mllm_tailor.recipe.schema import Tiles

# It would suggest to install a package that fetches compiled code from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

SMALL = 500_000_000  # weights; up to here float32 is kept, since updates of bf16 weights below 1/256 round away


def open_model(
    path: str | Path = "embedded",
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    tiles: Tiles | None = None,
    system: str | None = None,
    quantize: Literal["nf4", "int8"] | None = None,
    quantize_skip: Sequence[str] = (),
) -> OpenModel:
    """Open `embedded`, a folder or a hub id.

    `dtype` auto keeps small models in float32 and takes bfloat16 for others where the hardware has it. `quantize` packs
    the linear layers into 4 bits (NF4 with double quantisation, arXiv 2305.14314) or 8, except the head and the parts
    or module names in `quantize_skip`. `tiles` and `system` stand in for the checkpoint's own.

    Raises:
        ModelError: naming the file and what to do.
    """
    checkpoint = find_checkpoint(path, revision)
    if checkpoint.config.get("model_type") == ORIGINAL:
        copy = find_checkpoint(native_folder(checkpoint))
        checkpoint = replace(copy, path=checkpoint.path, revision=checkpoint.revision)
    kind = checkpoint.config.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(f"{path}: unknown model type {kind!r} — {nearest(str(kind), FAMILIES)}")
    place = pick_device(device)
    number = _number_format(dtype, checkpoint.parameters, place)
    family = FAMILIES[kind]
    processor = open_processor(checkpoint)
    kept = [name for word in ("head", *quantize_skip) for name in family.parts.get(word, (rf"(?:.*\.)?{word}",))]
    model = _load(checkpoint, number, place, _quantization(quantize, kept, place))
    _check_fit(checkpoint, model, processor)
    return OpenModel(
        model=model,
        processor=processor,
        family=replace(family, linear_names=linear_names(model, family.parts)),
        tiles=tiles or stated_tiles(processor),
        system=system if system is not None else processor.system,
        device=place,
        dtype=number,
        folder=checkpoint.folder,
        path=checkpoint.path,
        revision=checkpoint.revision,
        quantize=quantize,
    )


def _number_format(wanted: str | torch.dtype, parameters: int, device: torch.device) -> torch.dtype:
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
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
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantization: BitsAndBytesConfig | None
) -> Any:
    """The model with all its weights; missing and ill-shaped ones are errors, not random numbers."""
    (disable_progress_bar if checkpoint.parameters < SMALL else enable_progress_bar)()
    quantized = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
    try:
        model, report = AutoModelForMultimodalLM.from_pretrained(
            checkpoint.folder,
            config=native_config(checkpoint.config),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation="sdpa",
            **quantized,
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
    if getattr(model.config, "ps_version", "v2") == "v1":
        use_first_pixel_shuffle(model.model)
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


def open_processor(checkpoint: Checkpoint) -> InternVLProcessor:
    """Tokenizer, Pillow image processor and chat template of a native InternVL folder."""
    folder = checkpoint.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        pictures = GotOcr2ImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: tokenizer or processor cannot be read — its files are missing or damaged"
        ) from error
    for name in ("start_image_token", "end_image_token", "context_image_token", "video_token"):
        if getattr(tokenizer, name, None) is None:
            raise ModelError(f"{folder / 'tokenizer_config.json'}: no `{name}` — this tokenizer knows no pictures")
    try:
        stated = read_json(folder / "processor_config.json")
    except FileNotFoundError:
        stated = {}
    except DataError as error:
        raise ModelError(str(error)) from None
    return InternVLProcessor(
        pictures,
        tokenizer,
        image_seq_length=stated.get("image_seq_length", checkpoint.config.get("image_seq_length", 256)),
        use_thumbnail=stated.get("use_thumbnail", True),
        system=stated.get("system"),
        chat_template=tokenizer.chat_template,
    )


def stated_tiles(processor: InternVLProcessor) -> Tiles:
    """The checkpoint's own tiles."""
    pictures = processor.image_processor
    if not pictures.crop_to_patches:
        return Tiles(min=1, max=1, thumbnail=False)
    return Tiles(min=pictures.min_patches, max=pictures.max_patches, thumbnail=processor.use_thumbnail)


def _check_fit(checkpoint: Checkpoint, model: Any, processor: InternVLProcessor) -> None:
    """Tokenizer, processor and weights of different checkpoints, mixed in one folder, are caught here."""
    rows = model.get_input_embeddings().weight.shape[0]
    # A clip's placeholder is always written out before it is tokenised; official folders number it past the last row.
    vocabulary = processor.tokenizer.get_vocab()
    highest = max(number for token, number in vocabulary.items() if token != processor.video_token)
    if highest >= rows:
        raise ModelError(f"{checkpoint.folder}: the tokenizer has {highest + 1} tokens, the model {rows} — wrong one")
    if processor.image_token_id != model.config.image_token_id:
        raise ModelError(
            f"{checkpoint.folder}: picture token {processor.image_token_id} in the tokenizer, "
            f"{model.config.image_token_id} in config.json — these files belong to different checkpoints"
        )
