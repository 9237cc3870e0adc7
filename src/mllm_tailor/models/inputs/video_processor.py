"""Videos for families with a processor of transformers, without torchvision, which its video processors require.

A `FrameReader` replaces the video processor: it takes frames that are already sampled and resizes them by Pillow, as
images are. The placeholders of videos are written by the processor of transformers.
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
Inputs = dict[str, Any]
TICKS = 1000  # per second; transformers takes times as indices of frames at a rate


class FrameReader:
    """Processes frames like the video processor of transformers called `kind`; without a name it accepts no video."""

    _auto_class = None
    num_frames = None  # processors read these two even without a video
    fps = None

    def __init__(self, kind: str, image_processor: Any, stated: Mapping[str, Any]) -> None:
        self.kind = kind
        self.image_processor = image_processor
        self.stated = dict(stated)  # settings of videos; the defaults are those of images
        self.settings = {**(image_processor.to_dict() if image_processor is not None else {}), **self.stated}
        self.merge_size = self.settings.get("merge_size", 2)
        self.temporal_patch_size = self.settings.get("temporal_patch_size", 2)
        self.model_input_names = ["pixel_values_videos", "video_grid_thw"]

    def to_dict(self) -> dict[str, Any]:
        """The settings as transformers stores them, so that a saved folder loads with the stock class."""
        names = ("image_processor_type", "processor_class", "auto_map")
        kept = {name: value for name, value in self.settings.items() if name not in names}
        return kept | {"video_processor_type": self.kind}

    def __call__(self, videos: Sequence[Frames], video_metadata: Sequence[VideoMetadata], **_: Any) -> Inputs:
        """Tensors of the videos, and the times of their frames."""
        return READERS[self.kind](self, videos) | {"video_metadata": list(video_metadata)}


def stated_video_settings(folder: Path) -> dict[str, Any]:
    """Video settings of a checkpoint, from the newer or the older file."""
    newer, older = folder / "processor_config.json", folder / "video_preprocessor_config.json"
    stated = read_json(newer).get("video_processor") if newer.exists() else None
    return dict(stated or (read_json(older) if older.exists() else {}))


def describe(video: VideoFrames) -> VideoMetadata:
    """The times of the frames of a video."""
    return VideoMetadata(
        total_num_frames=max(1, round(video.seconds * TICKS)),
        fps=TICKS,
        duration=video.seconds,
        frames_indices=[round(time * TICKS) for time in video.times],
    )


def _budget(size: Mapping[str, Any], share: float) -> dict[str, int]:
    """The minimum and maximum number of pixels of a frame."""
    fewest, most = math.ceil(size["shortest_edge"] / share), math.floor(size["longest_edge"] / share)
    return {"shortest_edge": fewest, "longest_edge": most}


def _patches(reader: FrameReader, videos: Sequence[Frames], share: Callable[[int, int], float]) -> Inputs:
    """`pixel_values_videos` (patches, values) with `temporal_patch_size` frames in each patch, and their grids.

    The image processor makes patches of a repeated frame. A video without a full last patch repeats its last frame.
    `share(frames, frames per patch)` is the divisor of the maximum number of pixels of a video.
    """
    depth, rows, grids = reader.temporal_patch_size, [], []
    for frames in videos:
        whole = [*frames, *[frames[-1]] * (-len(frames) % depth)]
        size = _budget(reader.settings["size"], share(len(whole), depth))
        read = [reader.image_processor(images=[frame], size=size, return_tensors="pt") for frame in whole]
        side = reader.image_processor.patch_size
        single = torch.stack(
            [inputs["pixel_values"].unflatten(1, (-1, depth, side * side))[:, :, 0] for inputs in read]
        )
        # (frames, positions, channels, values) -> (times x positions, channels x depth x values)
        joined = single.unflatten(0, (-1, depth)).permute(0, 2, 3, 1, 4)
        rows.append(joined.flatten(2).flatten(0, 1))
        _, height, width = read[0]["image_grid_thw"][0].tolist()
        grids.append([len(whole) // depth, height, width])
    return {"pixel_values_videos": torch.cat(rows), "video_grid_thw": torch.tensor(grids)}


def _frame_by_frame(reader: FrameReader, videos: Sequence[Frames]) -> Inputs:
    """Qwen2-VL: every frame may have as many pixels as an image."""
    return _patches(reader, videos, lambda _frames, _depth: 1)


def _all_frames(reader: FrameReader, videos: Sequence[Frames]) -> Inputs:
    """Qwen3-VL: the frames of a video share its pixels."""
    return _patches(reader, videos, lambda frames, _depth: frames)


def _all_frames_by_depth(reader: FrameReader, videos: Sequence[Frames]) -> Inputs:
    """GLM-4V: as Qwen3-VL, but an image counts as the frames of a patch."""
    return _patches(reader, videos, lambda frames, depth: frames / depth)


def _squares(reader: FrameReader, videos: Sequence[Frames]) -> Inputs:
    """The LLaVA family: `pixel_values_videos` (videos, frames, 3, height, width), resized and cut to one size."""
    taken = (
        *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
        *("do_normalize", "image_mean", "image_std", "do_convert_rgb"),
    )
    stated = {"do_center_crop": False, **reader.settings}
    cut = CLIPImageProcessorPil(**{name: stated[name] for name in taken if stated.get(name) is not None})
    return {
        "pixel_values_videos": torch.stack([cut(list(frames), return_tensors="pt").pixel_values for frames in videos])
    }


def _square_images(reader: FrameReader, videos: Sequence[Frames]) -> Inputs:
    """SmolVLM: every frame is a square image (videos, frames, 3, side, side), first resized by its long edge."""
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
    """Resize the long edge to `long` pixels, the other in proportion to an even number."""
    wide = frame.width >= frame.height
    short = max(1, int(long * min(frame.size) / max(frame.size)))
    short += short % 2
    return frame.resize((long, short) if wide else (short, long), filter_)


READERS: dict[str, Callable[[FrameReader, Sequence[Frames]], Inputs]] = {
    "Qwen2VLVideoProcessor": _frame_by_frame,
    "Qwen3VLVideoProcessor": _all_frames,
    "Glm4vVideoProcessor": _all_frames_by_depth,
    "LlavaOnevisionVideoProcessor": _squares,
    "LlavaNextVideoVideoProcessor": _squares,
    "VideoLlavaVideoProcessor": _squares,
    "SmolVLMVideoProcessor": _square_images,
}
