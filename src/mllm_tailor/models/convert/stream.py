"""Write an original InternVL checkpoint in the native layout, weight by weight."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, InternVLConfig

from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.io import atomic_folder, cache_folder, fingerprint, human_bytes, write_json
from mllm_tailor.core.manifest import seal
from mllm_tailor.core.progress import track
from mllm_tailor.models.bundled.build import build_processor
from mllm_tailor.models.checkpoint import INDEX, ORIGINAL, Checkpoint, weight_files
from mllm_tailor.models.convert.config import language_class, native_config_of
from mllm_tailor.models.convert.tokenizer import native_tokenizer, style_of, system_text, template_of
from mllm_tailor.models.convert.weights import Source, Split, destinations
from mllm_tailor.models.inputs.internvl_processor import InternVLProcessor, state_tiles
from mllm_tailor.models.native import build_empty
from mllm_tailor.models.resolve import find_checkpoint
from mllm_tailor.recipe.schema import Tiles

logger = logging.getLogger(__name__)

CONVERSION = 2  # raised when the output of conversions changes, so that older cached copies are not used
SHARD = 2**30  # bytes held before a file is written


@dataclass(frozen=True)
class Step:
    """A weight of the source and its native weights."""

    source: str
    targets: list[str]
    split: Split | None


def convert(source: str | Path, destination: str | Path, revision: str | None = None) -> Path:
    """Write the original InternVL checkpoint `source` (a folder or a hub id) into the new folder `destination`.

    Everything is checked before the first weight is read, at most about `SHARD` bytes are held in memory, and the
    folder appears only when it is complete.

    Raises:
        ModelError: naming the file and what to do.
    """
    target = Path(destination)
    if target.exists() and any(target.iterdir()):
        raise ModelError(f"{target}: is not empty — name a new folder")
    checkpoint = find_checkpoint(source, revision)
    if checkpoint.model_type != ORIGINAL:
        raise ModelError(f"{source}: is not in the original InternVL layout — load it as it is")
    config, processor = _translate(checkpoint)
    weights = Source(checkpoint.folder)
    steps = _plan(checkpoint, weights, config)
    with atomic_folder(target) as partial:
        _write_weights(partial, _converted(weights, steps, checkpoint.folder, _shapes(config, checkpoint.folder)))
        config.save_pretrained(partial)
        processor.save_pretrained(partial)
        tokenizer = processor.tokenizer
        GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
        ).save_pretrained(partial)
        seal(partial)
    if config.ps_version == "v1":
        logger.warning("%s: uses pixel shuffle version 1, which only mllm-tailor computes natively", target)
    return target


def native_folder(checkpoint: Checkpoint) -> Path:
    """The converted copy of an original checkpoint, made on first use and kept in the cache (`TAILOR_CACHE`)."""
    files = [file.resolve() for file in sorted({*checkpoint.folder.glob("*.*"), *weight_files(checkpoint.folder)})]
    facts = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = fingerprint("conversion", CONVERSION, facts)
    name = Path(checkpoint.path).name
    folder = cache_folder() / "native" / f"{name}-{key[:16]}"
    if not (folder / "config.json").exists():
        size = sum(file.stat().st_size for file in weight_files(checkpoint.folder))
        logger.info("%s: converted once to the native layout (%s in %s)", name, human_bytes(size), folder)
        try:
            convert(checkpoint.folder, folder)
        except OSError as error:
            raise ModelError(
                f"{folder}: cannot be written ({error}) — set TAILOR_CACHE to a folder with free space"
            ) from None
    return folder


def _translate(checkpoint: Checkpoint) -> tuple[InternVLConfig, InternVLProcessor]:
    """Native configuration and processor."""
    stated, folder = checkpoint.config, checkpoint.folder
    language = language_class(stated, folder)
    name, style = style_of(stated, folder, language)
    tokenizer = native_tokenizer(folder, language, style)
    config = native_config_of(stated, folder, int(tokenizer.get_vocab()["<IMG_CONTEXT>"]))
    vision: Any = config.vision_config
    patch = vision.patch_size[0]
    tiles = _tiles(stated)
    state_tiles(config, tiles)
    processor = build_processor(
        tokenizer,
        stated.get("force_image_size") or vision.image_size[0],
        patch,
        min_tiles=tiles.min,
        max_tiles=tiles.max,
        thumbnail=tiles.thumbnail,
        template=template_of(tokenizer, style, system_text(stated, folder, name), language),
        downsample=config.downsample_ratio,
        frame_text="Frame-{}: ",
    )
    return config, processor


def _tiles(stated: Mapping[str, Any]) -> Tiles:
    """The tiles of a checkpoint; the defaults are those of the original class."""
    if not stated.get("dynamic_image_size", False):
        return Tiles(min=1, max=1, thumbnail=False)
    fewest, most = stated.get("min_dynamic_patch", 1), stated.get("max_dynamic_patch", 6)
    return Tiles(min=fewest, max=most, thumbnail=bool(stated.get("use_thumbnail", False)))


def _shapes(config: InternVLConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every native weight."""
    model = build_empty(config, folder)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _plan(checkpoint: Checkpoint, weights: Source, config: InternVLConfig) -> list[Step]:
    """A step for every weight, after checking names and shapes."""
    folder, stated = checkpoint.folder, checkpoint.config
    shapes = _shapes(config, folder)
    steps, reached = [], set()
    for name, stored in weights.weights.items():
        try:
            targets, split = destinations(name, stated["llm_config"], language_class(stated, folder))
            wanted = [shapes[target] for target in targets]
        except KeyError:
            raise ModelError(
                f"{folder}: the weight {stored.name} is not part of this layout — remove files of other models"
            ) from None
        rows = sum(shape[0] for shape in wanted)
        if targets and (rows, *wanted[0][1:]) != stored.shape:
            raise ModelError(
                f"{weights.files[stored.name]}: {stored.name} has shape {list(stored.shape)}, config.json asks for "
                f"{[rows, *wanted[0][1:]]} — these files belong to different checkpoints"
            )
        steps += [Step(name, targets, split)] if targets else []
        reached |= set(targets)
    missing = sorted(set(shapes) - reached)
    if missing == ["lm_head.weight"]:  # tied when saved, so stored once
        return [*steps, Step(_source_of(steps, "model.language_model.embed_tokens.weight"), missing, None)]
    if missing:
        raise ModelError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]} — download it again")
    return steps


def _source_of(steps: list[Step], target: str) -> str:
    return next(step.source for step in steps if target in step.targets)


def _converted(
    weights: Source, steps: list[Step], folder: Path, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    for step in track(steps, f"Converting {folder.name}"):
        stored = weights.read(step.source)
        # Copied, since safetensors files cannot hold tensors that share memory.
        parts = [part.clone() for part in step.split(stored)] if step.split else [stored]
        for name, part in zip(step.targets, parts, strict=True):
            if tuple(part.shape) != shapes[name]:
                raise ModelError(
                    f"{folder}: {step.source} does not split into {name} — config.json is of another model"
                )
            yield name, part.contiguous()


def _write_weights(folder: Path, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Files of about `SHARD` bytes and, if there are several, their index."""
    shards: list[dict[str, Any]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(dict.fromkeys(held))
        held.clear()

    for name, weight in weights:
        held[name] = weight
        total += weight.nbytes
        if sum(tensor.nbytes for tensor in held.values()) >= SHARD:
            flush()
    if held:
        flush()
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for number, name in enumerate(names):
        (folder / f"{number}.part").rename(folder / name)
    if len(shards) > 1:
        weight_map = {weight: name for name, shard in zip(names, shards, strict=True) for weight in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
