"""Hostile pictures: every one opens as upright RGB or is refused by name, in bounded memory, without decoder texts."""

from __future__ import annotations

import gzip
import io
import re
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media
from mllm_tailor.media.open import image_size, open_image
from mllm_tailor.media.source import IMAGE_LIMITS, ImageLimits, decode_data_uri, media_kind


def scene(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """A picture in which every corner differs."""
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def heif(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    pillow_heif.encode("RGB", image.size, image.tobytes(), stream, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and brings almost nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.png", saved(scene(), "PNG"))
    return stream.getvalue()


def bad_profile() -> bytes:
    return saved(scene(), "JPEG", icc_profile=b"\xff" * 500)


def large_text_chunk() -> bytes:
    """A PNG whose compressed text unpacks to 8 MB."""
    whole = saved(scene(), "PNG")
    body = b"Comment\0\0" + zlib.compress(bytes(8 * 2**20))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return whole[:33] + chunk + whole[33:]


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


FITS = (b"SIMPLE  =                    T" + b" " * 50 + b"END".ljust(80)).ljust(2880)
REFUSED: dict[str, Callable[[], bytes]] = {
    "empty.jpg": lambda: b"",
    "one-byte.jpg": lambda: b"\xff",
    "text.jpg": lambda: b"Total: 9.00\n" * 100,
    "html.png": lambda: b"<!doctype html><title>404</title>",
    "svg.png": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "zip.png": zipped,
    "pdf.jpg": lambda: b"%PDF-1.7\n%%EOF",
    "zeros.png": lambda: bytes(10_000),
    "cut.jpg": lambda: half(saved(scene(400, 300), "JPEG")),
    "cut-in-header.jpg": lambda: saved(scene(), "JPEG")[:30],
    "cut.png": lambda: half(saved(scene(400, 300), "PNG")),
    "cut-before-end.png": lambda: saved(scene(400, 300), "PNG")[:-30],
    "cut.webp": lambda: half(saved(scene(400, 300), "WEBP")),
    "cut.tiff": lambda: half(saved(scene(400, 300), "TIFF")),
    "cut.gif": lambda: half(saved(scene(400, 300, "P"), "GIF")),
    "cut.bmp": lambda: half(saved(scene(400, 300), "BMP")),
    "signature-only.png": lambda: b"\x89PNG\r\n\x1a\n",
    "bomb-65535.png": lambda: png_header(65_535, 65_535),
    "bomb-4-billion.png": lambda: png_header(2**31 - 1, 2**31 - 1),
    "bomb-zero.png": lambda: png_header(0, 0),
    "bomb-little-data.png": lambda: png_header(8_000, 8_000),
    "thin.png": lambda: saved(Image.new("RGB", (1, 60_000)), "PNG"),
    "flat.png": lambda: saved(Image.new("RGB", (60_000, 1)), "PNG"),
    "dot.png": lambda: saved(Image.new("RGB", (1, 1)), "PNG"),
    "large.png": lambda: png_header(10_000, 9_000),
    "fits.jpg": lambda: FITS,
    "fits-gzip.jpg": lambda: gzip.compress(FITS),
    "postscript.jpg": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "jpeg2000.jpg": lambda: saved(scene(), "JPEG2000"),
    "icon.png": lambda: saved(scene(32, 32), "ICO"),
    "ppm.png": lambda: b"P6 10 10 255\n" + bytes(300),
    "bdf.png": lambda: b"STARTFONT 2.1\nFONTBOUNDINGBOX 9999 9999 0 0\nENDFONT\n",
    "text-chunk-bomb.png": large_text_chunk,
    "damaged.jpg": lambda: saved(scene(400, 300), "JPEG")[:300] + b"\xff\xd9",
}
OPENED: dict[str, Callable[[], bytes]] = {
    "plain.jpg": lambda: saved(scene(), "JPEG"),
    "progressive.jpg": lambda: saved(scene(), "JPEG", progressive=True),
    "grey.jpg": lambda: saved(scene(mode="L"), "JPEG"),
    "cmyk.jpg": lambda: saved(scene(mode="CMYK"), "JPEG"),
    "bad-profile.jpg": bad_profile,
    "png-called.jpg": lambda: saved(scene(), "PNG"),
    "palette.png": lambda: saved(scene(mode="P"), "PNG"),
    "palette-alpha.png": lambda: saved(scene(mode="P"), "PNG", transparency=0),
    "alpha.png": lambda: saved(scene(mode="RGBA"), "PNG"),
    "grey-alpha.png": lambda: saved(scene(mode="LA"), "PNG"),
    "bilevel.png": lambda: saved(scene(mode="1"), "PNG"),
    "sixteen.png": lambda: saved(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 54), "PNG"),
    "float.tiff": lambda: saved(Image.fromarray(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)), "TIFF"),
    "lzw.tiff": lambda: saved(scene(), "TIFF", compression="tiff_lzw"),
    "lab.tiff": lambda: saved(scene(mode="LAB"), "TIFF"),
    "animated.gif": lambda: saved(scene(mode="P"), "GIF", save_all=True, append_images=[scene(mode="P")] * 300),
    "animated.png": lambda: saved(scene(), "PNG", save_all=True, append_images=[scene()] * 30),
    "lossless.webp": lambda: saved(scene(mode="RGBA"), "WEBP", lossless=True),
    "plain.avif": lambda: saved(scene(), "AVIF"),
    "plain.heic": lambda: heif(scene()),
    "plain.bmp": lambda: saved(scene(), "BMP"),
}


def write(folder: Path, name: str, content: bytes) -> Media:
    (folder / name).write_bytes(content)
    return Media("image", path=folder / name)


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    media = write(tmp_path, name, REFUSED[name]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as error:
        open_image(media)
    message = str(error.value)
    assert name in message and " — " in message
    assert not re.search(r"\b0x[0-9a-f]{4}|object at", message), "a decoder's own words may hold addresses"
    assert error.value.__cause__ is None
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 600, f"{grown:.0f} MiB"


@pytest.mark.parametrize("name", OPENED)
def test_unusual_files_open_as_rgb(tmp_path: Path, name: str) -> None:
    media = write(tmp_path, name, OPENED[name]())
    image = open_image(media)
    assert image.mode == "RGB" and image.size == (40, 30) == image_size(media)
    assert np.asarray(image).std() > 5, "something is to be seen"


@pytest.mark.parametrize(
    "name", [name for name in REFUSED if not name.startswith(("cut", "damaged", "bomb-little", "text-chunk"))]
)
def test_a_header_alone_is_enough_to_refuse(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name):
        image_size(write(tmp_path, name, REFUSED[name]()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_shows_the_same_picture(tmp_path: Path, orientation: int, kind: str) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # undone by turning the other way
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = scene()
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[274] = orientation
    best = {"AVIF": {"quality": 100}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    media = write(tmp_path, f"{orientation}.{kind.lower()}", saved(stored, kind, exif=exif, **best.get(kind, {})))
    opened = open_image(media)
    assert opened.size == upright.size == image_size(media)
    apart = np.abs(np.asarray(opened, dtype=int) - np.asarray(upright, dtype=int))
    assert apart.max() <= (12 if kind in ("JPEG", "AVIF") else 0)
    assert opened.getexif().get(274, 1) == 1, "not to be turned a second time"


def test_a_turned_heic_lies_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    stored = scene().transpose(Image.Transpose.ROTATE_90)
    media = write(tmp_path, "turned.heic", heif(stored, quality=100, exif=exif.tobytes()))
    opened = open_image(media)
    assert opened.size == scene().size == image_size(media)
    assert np.abs(np.asarray(opened, dtype=int) - np.asarray(scene(), dtype=int)).max() <= 12


CUT = {
    "JPEG": {}, "PNG": {}, "WEBP": {}, "GIF": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}, "AVIF": {},
    "progressive JPEG": {"progressive": True}, "lossless WEBP": {"lossless": True}, "plain TIFF": {},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CUT, "HEIF"])
@settings(max_examples=25)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.5)
@example(share=0.99999)
def test_an_image_that_is_cut_off_is_refused_or_equal(name: str, share: float) -> None:
    content = heif(scene(80, 60)) if name == "HEIF" else saved(scene(80, 60), name.rpartition(" ")[2], **CUT[name])
    whole = open_image(Media("image", data=content))
    try:
        result = open_image(Media("image", data=content[: max(1, int(share * len(content)))]))
    except DataError as error:
        assert " — " in str(error)
    else:
        assert result.tobytes() == whole.tobytes()


def test_a_heic_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = write(tmp_path, "photo.heic", heif(scene()))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for read in (open_image, image_size):
        with pytest.raises(DataError, match=r"photo\.heic: .* pip install 'mllm-tailor\[heif\]'"):
            read(media)


@pytest.mark.slow
def test_opening_leaves_the_warning_filters_and_the_formats_of_pillow_alone() -> None:
    code = (
        "import warnings, av, numpy, soundfile; from PIL import Image\n"
        "before = list(warnings.filters), set(Image.OPEN)\n"
        "import mllm_tailor.media.open, mllm_tailor.media.audio, mllm_tailor.media.crop, mllm_tailor.media.video\n"
        "assert before == (list(warnings.filters), set(Image.OPEN))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(scene(), "PNG")
    end = data.index(b"IDAT") - 4
    broken = write(tmp_path, "broken.png", data[: end + 12] + b"\0" * (len(data) - end - 12))  # its pixels are gone
    assert image_size(broken) == scene().size

    exif = Image.Exif()
    exif[274] = 6
    told = saved(scene(), "PNG", exif=exif)
    start = told.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(told[start : start + 4], "big")
    last = told.index(b"IEND") - 4
    behind = write(tmp_path, "behind.png", told[:start] + told[stop:last] + told[start:stop] + told[last:])
    assert image_size(behind) == open_image(behind).size == scene().size[::-1]


def test_transparent_parts_are_white_and_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert np.asarray(open_image(write(tmp_path, "clear.png", saved(clear, "PNG")))).min() == 255
    ramp = np.linspace(0, 65_535, 256).round().astype(np.uint16).reshape(16, 16)
    opened = np.asarray(open_image(write(tmp_path, "ramp.png", saved(Image.fromarray(ramp), "PNG"))))
    np.testing.assert_array_equal(opened[..., 0].ravel(), np.arange(256))


def test_limits_are_the_callers_to_set(tmp_path: Path) -> None:
    media = write(tmp_path, "a.png", saved(scene(), "PNG"))
    for limits in (ImageLimits(bytes=50), ImageLimits(pixels=1199), ImageLimits(side=31)):
        with pytest.raises(DataError, match=r"a\.png"):
            open_image(media, limits)
    assert open_image(media, ImageLimits(pixels=1200, side=30)).size == (40, 30)
    assert IMAGE_LIMITS.pixels <= 100_000_000


def test_missing_files_folders_and_pages(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "none.png", tmp_path / "folder.png"):
        with pytest.raises(DataError, match=path.name):
            open_image(Media("image", path=path))
    pages = saved(scene(), "TIFF", save_all=True, append_images=[scene().rotate(180)])
    media = write(tmp_path, "pages.tiff", pages)
    first, second = (np.asarray(open_image(Media("image", path=media.path, page=page))) for page in (0, 1))
    np.testing.assert_array_equal(first[::-1, ::-1], second)
    with pytest.raises(DataError, match="no such page"):
        open_image(Media("image", path=media.path, page=2))


def test_inline_pictures_and_damaged_data_addresses() -> None:
    assert open_image(Media("image", data=saved(scene(), "PNG"))).size == (40, 30)
    assert decode_data_uri("data:image/png;base64,aGk=", "row") == b"hi"
    for uri in (
        "data:image/png,hi",
        "data:image/png;base64,a",
        "data:;base64,??",
        "nonsense",
        "data:image/png;base64,é",
    ):
        with pytest.raises(DataError, match="row"):
            decode_data_uri(uri, "row")


def test_kinds_by_suffix() -> None:
    kinds = ["image", "video", "audio", "image", None, None]
    assert [media_kind(name) for name in ("a.JPG", "b.mp4", "c.flac", "d.pdf", "e.txt", "f")] == kinds


@pytest.mark.slow
@settings(max_examples=150)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    kept=st.floats(0.02, 1),
)
def test_damage_anywhere_is_opened_or_refused(kind: str, changes: list[tuple[float, int]], kept: float) -> None:
    content = bytearray(saved(scene(mode="P" if kind == "GIF" else "RGB"), kind))
    for place, value in changes:
        content[min(len(content) - 1, int(place * len(content)))] = value
    try:
        image = open_image(Media("image", data=bytes(content[: max(1, int(kept * len(content)))])))
    except DataError as error:
        assert " — " in str(error)
    else:
        assert image.mode == "RGB"
