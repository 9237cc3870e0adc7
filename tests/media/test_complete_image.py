"""Image files that were not copied to their end are refused where their decoders would show the rest as grey."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media
from mllm_tailor.media.image import decode_image


def _image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (90, 120, 3), dtype=np.uint8))


def _saved(kind: str, *, animated: bool = False) -> bytes:
    stream = io.BytesIO()
    more = {"save_all": True, "append_images": [_image(1), _image(2)]} if animated else {}
    _image().save(stream, kind, **more)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "PNG", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_file_whose_end_is_zeros_is_refused(kind: str, share: float) -> None:
    whole = _saved(kind)
    decode_image(Media("image", data=whole))
    left = int(share * len(whole))
    with pytest.raises(DataError, match="cut off"):
        decode_image(Media("image", data=whole[:left] + bytes(len(whole) - left)))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_an_animation_that_is_cut_off_behind_its_first_frame_is_refused(kind: str) -> None:
    whole = _saved(kind, animated=True)
    decode_image(Media("image", data=whole))
    for left in (int(0.6 * len(whole)), len(whole) - 600):
        with pytest.raises(DataError, match="cut off"):
            decode_image(Media("image", data=whole[:left]))


def test_zeros_behind_the_end_mark_of_a_jpeg_are_padding() -> None:
    assert decode_image(Media("image", data=_saved("JPEG") + bytes(4096))).size == (120, 90)
