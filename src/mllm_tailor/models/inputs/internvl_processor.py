"""A processor for InternVL that uses Pillow instead of torchvision.

The stock InternVLProcessor requires a video processor, which exists only with torchvision. This class has the same name
and file layout, so folders that it saves load with the stock class; videos are sampled to frames before they get here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import BatchFeature, GotOcr2ImageProcessorPil, PreTrainedTokenizerBase, ProcessorMixin

from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import read_json
from mllm_tailor.models.chat_template import stated_template
from mllm_tailor.models.checkpoint import Checkpoint, reading
from mllm_tailor.models.families import Family
from mllm_tailor.models.native import open_tokenizer
from mllm_tailor.recipe.schema import Tiles

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS = 3
SETTINGS = "processor_config.json"
LARGEST = 1 << 20  # pixels, tiles or tokens


class InternVLProcessor(ProcessorMixin):
    """Image processor, tokenizer and chat template of a native InternVL checkpoint."""

    def __init__(
        self,
        image_processor: GotOcr2ImageProcessorPil,
        tokenizer: PreTrainedTokenizerBase,
        image_seq_length: int = 256,
        # transformers passes on only what is not keyword-only
        use_thumbnail: bool = True,  # noqa: FBT001, FBT002
        system: str | None = None,
        frame_text: str = "Frame{}: ",
        reflow: bool = False,  # noqa: FBT001, FBT002
        chat_template: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
        self.image_seq_length = image_seq_length  # tokens per tile
        self.use_thumbnail = use_thumbnail  # not in the stock class, which always appends a thumbnail
        self.system = system  # not in the stock class, whose template writes it
        self.frame_text = frame_text  # before each frame of a video; differs between checkpoints
        self.reflow = reflow  # the model was trained on pages whose lines are set one after the other (media.reflow)
        self.start_image_token = tokenizer.start_image_token
        self.end_image_token = tokenizer.end_image_token
        self.image_token = tokenizer.context_image_token
        self.video_token = tokenizer.video_token
        self.image_token_id = tokenizer.context_image_token_id

    def keep(self, tiles: Tiles, system: str | None, *, reflow: bool) -> None:
        """Set the tiles, the system text and the way images are prepared that are saved."""
        images = self.image_processor
        images.crop_to_patches, images.min_patches, images.max_patches = True, tiles.min, tiles.max
        self.use_thumbnail, self.system, self.reflow = tiles.thumbnail, system, reflow

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> BatchFeature:
        """Ids, mask and tiles, ready for the model."""
        inputs: BatchFeature = super().__call__(images=images, text=text, **options)
        inputs.pop("num_patches", None)  # already used for the placeholders
        return inputs

    def to_dict(self) -> dict[str, Any]:
        """Add the video settings of the stock class, so that it loads our folders where torchvision exists."""
        values = super().to_dict()
        images = values["image_processor"]
        shared = ("size", "image_mean", "image_std", "resample", "do_resize", "do_rescale", "do_normalize")
        values["video_processor"] = {"video_processor_type": "InternVLVideoProcessor"} | {
            key: images[key] for key in shared if key in images
        }
        return values

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """The expansion of a placeholder: a context token per feature of the image."""
        tiles = int(image_inputs["num_patches"][image_idx])
        return f"{self.start_image_token}{self.image_token * self.image_seq_length * tiles}{self.end_image_token}"


def open_processor(checkpoint: Checkpoint) -> InternVLProcessor:
    """Tokenizer, Pillow image processor and chat template of a native InternVL folder."""
    folder = checkpoint.folder
    with reading(folder, "tokenizer or processor cannot be read", "its files are missing or damaged; copy them again"):
        tokenizer = open_tokenizer(checkpoint.config, folder)
        image_processor = GotOcr2ImageProcessorPil.from_pretrained(folder, local_files_only=True)
    for name in ("start_image_token", "end_image_token", "context_image_token", "video_token"):
        if getattr(tokenizer, name, None) is None:
            raise ModelError(f"{folder / 'tokenizer_config.json'}: no `{name}` — this tokenizer has no image tokens")
    file = folder / SETTINGS
    try:
        stated = read_json(file) if file.exists() else {}
    except DataError as error:
        raise ModelError(str(error)) from None
    with reading(file, "cannot be used", "copy or download it again"):
        processor = _build_processor(checkpoint, image_processor, tokenizer, stated)
    _check_settings(folder, processor)
    return processor


def states_reflow(folder: Path) -> bool:
    """Whether the checkpoint in a folder was trained on pages whose lines are set one after the other."""
    file = folder / SETTINGS
    return file.is_file() and bool(read_json(file).get("reflow"))


def _build_processor(
    checkpoint: Checkpoint,
    image_processor: GotOcr2ImageProcessorPil,
    tokenizer: PreTrainedTokenizerBase,
    stated: Mapping[str, Any],
) -> InternVLProcessor:
    folder = checkpoint.folder
    return InternVLProcessor(
        image_processor,
        tokenizer,
        image_seq_length=stated.get("image_seq_length", checkpoint.config.get("image_seq_length", 256)),
        use_thumbnail=stated.get("use_thumbnail", True),
        system=stated.get("system"),
        frame_text=stated.get("frame_text", "Frame{}: "),
        reflow=stated.get("reflow", False),
        chat_template=stated_template(folder, tokenizer.chat_template),
    )


def _check_settings(folder: Path, processor: InternVLProcessor) -> None:
    """Refuse settings of another kind than tiles are cut by.

    Raises:
        ModelError: naming the setting.
    """
    images = processor.image_processor
    size = images.size or {}
    for name, value, wanted, fits in (
        ("image_mean", images.image_mean, "three numbers", _are_numbers(images.image_mean)),
        (
            "image_std", images.image_std, "three numbers above 0",
            _are_numbers(images.image_std) and min(images.image_std) > 0,
        ),
        ("size", dict(size), "a height and a width in pixels", _is_count(size.get("height"), size.get("width"))),
        ("min_patches", images.min_patches, "a number of tiles", _is_count(images.min_patches)),
        ("max_patches", images.max_patches, "a number of tiles", _is_count(images.max_patches)),
        (
            "image_seq_length", processor.image_seq_length, "the tokens of a tile",
            _is_count(processor.image_seq_length),
        ),
        ("use_thumbnail", processor.use_thumbnail, "true or false", isinstance(processor.use_thumbnail, bool)),
        ("reflow", processor.reflow, "true or false", isinstance(processor.reflow, bool)),
        (
            "model_max_length", processor.tokenizer.model_max_length, "a number of tokens",
            isinstance(processor.tokenizer.model_max_length, (int, float)),
        ),
    ):  # fmt: skip
        if not fits:
            raise ModelError(
                f"{folder}: `{name}` of the processor or tokenizer should be {wanted}, found {repr(value)[:60]} — "
                "copy its configuration again"
            )


def _are_numbers(values: Any) -> bool:
    kinds = isinstance(values, (list, tuple)) and len(values) == CHANNELS
    return kinds and all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _is_count(*values: Any) -> bool:
    return all(type(value) is int and 0 < value <= LARGEST for value in values)


def stated_tiles(processor: Any) -> Tiles:
    """The tiles of the checkpoint; a single tile for families without tiles.

    `crop_to_patches` is ignored: it is false in official folders, although their processor cuts tiles.
    """
    if not isinstance(processor, InternVLProcessor):
        return Tiles(min=1, max=1, thumbnail=False)
    images = processor.image_processor
    return Tiles(min=images.min_patches, max=images.max_patches, thumbnail=processor.use_thumbnail)


def state_tiles(config: Any, tiles: Tiles) -> None:
    """Set the number of tiles in config.json too, under the original names, where llama.cpp reads it."""
    config.min_dynamic_patch, config.max_dynamic_patch = tiles.min, tiles.max


def set_tile(processor: InternVLProcessor, config: Any, side: int) -> None:
    """Set the size of tiles to `side` pixels.

    Raises:
        ModelError: when the patches of such a tile cannot be joined 2x2.
    """
    patch = config.vision_config.patch_size
    patch = patch[0] if isinstance(patch, (list, tuple)) else patch
    joined = side // patch * config.downsample_ratio
    if side % patch or joined % 1:
        step = round(patch / config.downsample_ratio)
        raise ModelError(
            f"model.tile_size {side}: not a multiple of {step} pixels — use {max(step, side // step * step)}"
        )
    processor.image_processor.size = {"height": side, "width": side}
    processor.image_seq_length = int(joined) ** 2


def choose_reflow(setting: bool | None, family: Family, processor: Any) -> bool:  # noqa: FBT001
    """Whether printed lines are set one after the other: the recipe's setting, else the checkpoint's.

    Raises:
        ModelError: naming the setting, for a model that does not read tiles.
    """
    if not (getattr(processor, "reflow", False) if setting is None else setting):
        return False
    if not family.tiled:
        raise ModelError(f"`model.reflow`: {family.title} does not read rows of tiles — leave the setting out")
    return True


def check_fit(checkpoint: Checkpoint, model: Any, processor: InternVLProcessor) -> None:
    """Refuse tokenizer, processor and weights of different checkpoints in the same folder."""
    side, patch = processor.image_processor.size["height"], model.config.vision_config.patch_size
    along = side / (patch[0] if isinstance(patch, (list, tuple)) else patch) * model.config.downsample_ratio
    if along**2 != processor.image_seq_length or side != processor.image_processor.size["width"]:
        raise ModelError(
            f"{checkpoint.folder}: tiles of {side} x {processor.image_processor.size['width']} pixels come to "
            f"{along**2:g} tokens, and the processor states {processor.image_seq_length} — these files belong to "
            "different checkpoints"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    # The video placeholder is expanded before tokenisation; in official folders its id is beyond the last row.
    vocabulary = processor.tokenizer.get_vocab()
    highest = max(number for token, number in vocabulary.items() if token != processor.video_token)
    if highest >= rows:
        raise ModelError(
            f"{checkpoint.folder}: the tokenizer has {highest + 1} tokens, the model {rows} — "
            "these files belong to different checkpoints"
        )
    if processor.image_token_id != model.config.image_token_id:
        raise ModelError(
            f"{checkpoint.folder}: image token {processor.image_token_id} in the tokenizer, "
            f"{model.config.image_token_id} in config.json — these files belong to different checkpoints"
        )
