"""Clips for the families transformers' processors read, without torchvision, which their video processors insist on.

A reader stands in the place of the video processor: it takes frames that are chosen already, and Pillow does all
resizing, as for pictures. What a clip becomes in the text is left to the processor of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil
from transformers.video_utils import VideoMetadata

from mllm_tailor.core.io import read_json
from mllm_tailor.media.video import VideoFrames

Frames = Sequence[Image.Image]
Found = dict[str, Any]
TICKS = 1000  # a second; times are told to transformers as numbers of frames at a rate


class FrameReader:
    """Reads frames as one of transformers' video processors does, named in `FAMILIES`; without a name it reads none."""

    _auto_class = None
    num_frames = None  # processors ask for these two before they know whether there is a clip
    fps = None

    def __init__(self, kind: str, pictures: Any, stated: Mapping[str, Any]) -> None:
        self.kind = kind
        self.pictures = pictures  # the image processor
        self.stated = dict(stated)  # settings for clips; those of pictures hold where they are silent
        self.settings = {**(pictures.to_dict() if pictures is not None else {}), **self.stated}
        self.merge_size = self.settings.get("merge_size", 2)
        self.temporal_patch_size = self.settings.get("temporal_patch_size", 2)
        self.model_input_names = ["pixel_values_videos", "video_grid_thw"]

    def to_dict(self) -> dict[str, Any]:
        """As transformers stores it, so that a saved folder opens with the stock class elsewhere."""
        names = ("image_processor_type", "processor_class", "auto_map")
        kept = {name: value for name, value in self.settings.items() if name not in names}
        return kept | {"video_processor_type": self.kind}

    def __call__(self, videos: Sequence[Frames], video_metadata: Sequence[VideoMetadata], **_: Any) -> Found:
        """Tensors of the clips, and when their frames were on screen."""
        return READERS[self.kind](self, videos) | {"video_metadata": list(video_metadata)}


def stated_clips(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about clips, in the newer place or the older."""
    newer, older = folder / "processor_config.json", folder / "video_preprocessor_config.json"
    stated = read_json(newer).get("video_processor") if newer.exists() else None
    return dict(stated or (read_json(older) if older.exists() else {}))


def describe(clip: VideoFrames) -> VideoMetadata:
    """When the frames of a clip are on screen."""
    return VideoMetadata(
        total_num_frames=max(1, round(clip.seconds * TICKS)),
        fps=TICKS,
        duration=clip.seconds,
        frames_indices=[round(time * TICKS) for time in clip.times],
    )


def _budget(size: Mapping[str, Any], share: float) -> dict[str, int]:
    """Fewest and most pixels of a frame."""
    fewest, most = math.ceil(size["shortest_edge"] / share), math.floor(size["longest_edge"] / share)
    return {"shortest_edge": fewest, "longest_edge": most}


def _patches(reader: FrameReader, videos: Sequence[Frames], share: Callable[[int, int], float]) -> Found:
    """`pixel_values_videos` (patches, values) with `temporal_patch_size` frames in each patch, and their grids.

    The image processor makes patches of one frame, repeated. A clip without a full last patch repeats its last frame.
    `share` tells from the number of frames and of frames in a patch by what to divide the pixels a clip may have.
    """
    depth, rows, grids = reader.temporal_patch_size, [], []
    for frames in videos:
        whole = [*frames, *[frames[-1]] * (-len(frames) % depth)]
        size = _budget(reader.settings["size"], share(len(whole), depth))
        read = [reader.pictures(images=[frame], size=size, return_tensors="pt") for frame in whole]
        side = reader.pictures.patch_size
        single = torch.stack([one["pixel_values"].unflatten(1, (-1, depth, side * side))[:, :, 0] for one in read])
        # (frames, places, channels, values) -> (times x places, channels x depth x values)
        joined = single.unflatten(0, (-1, depth)).permute(0, 2, 3, 1, 4)
        rows.append(joined.flatten(2).flatten(0, 1))
        _, height, width = read[0]["image_grid_thw"][0].tolist()
        grids.append([len(whole) // depth, height, width])
    return {"pixel_values_videos": torch.cat(rows), "video_grid_thw": torch.tensor(grids)}


def _frame_by_frame(reader: FrameReader, videos: Sequence[Frames]) -> Found:
    """Qwen2-VL: every frame may have as many pixels as a picture."""
    return _patches(reader, videos, lambda frames, depth: 1)


def _all_frames(reader: FrameReader, videos: Sequence[Frames]) -> Found:
    """Qwen3-VL: the frames of a clip share its pixels."""
    return _patches(reader, videos, lambda frames, depth: frames)


def _all_frames_by_depth(reader: FrameReader, videos: Sequence[Frames]) -> Found:
    """GLM-4V: the same, where a picture counts as the frames of one patch."""
    return _patches(reader, videos, lambda frames, depth: frames / depth)


def _squares(reader: FrameReader, videos: Sequence[Frames]) -> Found:
    """The LLaVA family: `pixel_values_videos` (clips, frames, 3, height, width), resized and cut to one size."""
    taken = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor")
    taken += ("do_normalize", "image_mean", "image_std", "do_convert_rgb")
    stated = {"do_center_crop": False, **reader.settings}
    cut = CLIPImageProcessorPil(**{name: stated[name] for name in taken if stated.get(name) is not None})
    return {
        "pixel_values_videos": torch.stack([cut(list(frames), return_tensors="pt").pixel_values for frames in videos])
    }


def _pictures(reader: FrameReader, videos: Sequence[Frames]) -> Found:
    """SmolVLM: every frame is one square picture (clips, frames, 3, side, side), resized to its long edge before."""
    long, side = (reader.settings[name]["longest_edge"] for name in ("size", "max_image_size"))
    filter_ = Image.Resampling(reader.settings.get("resample", Image.Resampling.LANCZOS))
    squared = [[_fit(frame, long, filter_).resize((side, side), filter_) for frame in frames] for frames in videos]
    plain = CLIPImageProcessorPil(
        do_resize=False, do_center_crop=False, **{name: reader.settings[name] for name in ("image_mean", "image_std")}
    )
    pixels = torch.stack([plain(frames, return_tensors="pt").pixel_values for frames in squared])
    mask: Tensor = torch.ones_like(pixels[:, :, 0], dtype=torch.int64)
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def _fit(frame: Image.Image, long: int, filter_: Image.Resampling) -> Image.Image:
    """The long edge at `long` pixels, the other in proportion and even."""
    wide = frame.width >= frame.height
    short = max(1, int(long * min(frame.size) / max(frame.size)))
    short += short % 2
    return frame.resize((long, short) if wide else (short, long), filter_)


READERS: dict[str, Callable[[FrameReader, Sequence[Frames]], Found]] = {
    "Qwen2VLVideoProcessor": _frame_by_frame,
    "Qwen3VLVideoProcessor": _all_frames,
    "Glm4vVideoProcessor": _all_frames_by_depth,
    "LlavaOnevisionVideoProcessor": _squares,
    "LlavaNextVideoVideoProcessor": _squares,
    "VideoLlavaVideoProcessor": _squares,
    "SmolVLMVideoProcessor": _pictures,
}
