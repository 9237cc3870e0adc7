"""Bad label files of every layout in docs/data.md, odd files beside them, and damaged media."""

from __future__ import annotations

import csv
import gzip
import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image
from reliability.case import Case
from reliability.mutations import WHOLE_DOCUMENTS, damaged, lines

TESTS = Path(__file__).resolve().parents[2] / "tests"
INIT = ("init", "data", "--out", "out.yaml")
BINARY = (".parquet", ".arrow", ".tar", ".gz", ".db")
DAMAGES = 7  # of each layout's label files


def label_files(workspace: Path) -> Iterator[Case]:
    """Every example of docs/data.md with damaged label files."""
    sys.path.insert(0, str(TESTS))
    from fixtures.data_examples import EXAMPLES, write_example

    for place, example in enumerate(EXAMPLES):
        name = f"{place} {example.layout} {example.task}"
        with tempfile.TemporaryDirectory() as folder:
            write_example(example, Path(folder))
            files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in Path(folder).rglob("*.*")
                     if file.is_file()}  # fmt: skip
        labels = [file for file, _ in example.files if Path(file).suffix not in BINARY]
        for number in range(DAMAGES if labels else 0):
            file = labels[number % len(labels)]
            seed = f"{name} {file} {number}"
            (_, text), *_ = lines(files[file].decode(), seed, 1)
            content = text.encode("utf-8", "replace")
            yield Case(f"{name} {number}", INIT, _inside(files | {file: content}))
        for file, _ in example.files:
            if Path(file).suffix in BINARY:  # flipped bytes are the affair of the libraries that read these
                for what, content in (
                    ("empty", b""),
                    ("text", b"a,b\n1,2\n"),
                    ("half", files[file][: len(files[file]) // 2]),
                ):
                    yield Case(f"{name} {file} {what}", INIT, _inside(files | {file: content}))


def _inside(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"data/{name}": content for name, content in files.items()}


def odd_files(workspace: Path) -> Iterator[Case]:
    """Label files of another shape, size, coding or packing, and folders of links, pipes and odd names."""
    image = (workspace / "d" / "images" / "0.png").read_bytes()
    for name, content in WHOLE_DOCUMENTS:
        for file in ("metadata.jsonl", "data.json", "metadata.csv", "train.tsv", "labels.jsonl.gz", "train.parquet",
                     "train.arrow", "train.tar", "notes.txt"):  # fmt: skip
            packed = gzip.compress(content, mtime=0) if file.endswith(".gz") else content
            yield Case(f"{file} is {name}", INIT, {"data/a.png": image, f"data/{file}": packed})
    for name, content in _label_texts():
        yield Case(name, INIT, {"data/a.png": image, "data/b.png": image} | content)
    for name, arrange in _folders().items():
        yield Case(f"folder: {name}", INIT, {"data/a.png": image}, arrange=arrange)


def _label_texts() -> Iterator[tuple[str, dict[str, bytes]]]:
    row = b'{"file_name": "%s", "text": "x"}\n'
    for number, file in enumerate((
        "..", ".", "", "/etc/passwd", "../d/images/0.png", "a.png/", "a\\u0000.png", "[red].png",
                                   "\\ud800.png", "x" * 5000, "http://localhost/a.png", "file:///etc/passwd", "~/a.png",
                                   "data:image/png;base64,###", "data:,x", "C:\\\\a.png")):  # fmt: skip
        yield f"a file called {number}", {"data/metadata.jsonl": row % file.encode() + row % b"b.png"}
    good = row % b"a.png"
    yield "packed, cut off", {"data/metadata.jsonl.gz": gzip.compress(good * 200, mtime=0)[:-12]}
    yield "packed twice", {"data/metadata.jsonl.gz": gzip.compress(gzip.compress(good, mtime=0), mtime=0)}
    yield "packed, not packed", {"data/metadata.jsonl.gz": good}
    yield (
        "a deep row",
        {"data/metadata.jsonl": good + b'{"file_name": "b.png", "text": ' + b"[" * 500 + b"]" * 500 + b"}\n"},
    )
    yield "a row of numbers", {"data/metadata.jsonl": good + b"5\n" + b"[1]\n" + b'"x"\n'}
    yield "UTF-16", {"data/metadata.jsonl": good.decode().encode("utf-16")}
    yield "UTF-16 table", {"data/metadata.csv": "file_name,text\na.png,x\n".encode("utf-16")}
    yield "Latin-1 table", {"data/metadata.csv": "file_name,text\na.png,é\n".encode("latin-1")}
    yield "zero bytes in a table", {"data/metadata.csv": b"file_name,text\na.png,x\0y\nb.png,\0\n"}
    yield "a quote without end", {"data/metadata.csv": b'file_name,text\na.png,"x\nb.png,y\n'}
    yield "a table of one column", {"data/metadata.csv": b"file_name\na.png\nb.png\n"}
    yield (
        "a table of a thousand columns",
        {"data/metadata.csv": b",".join(b"c%d" % n for n in range(1000)) + b"\n" + b"1," * 2000},
    )
    yield "columns of one name", {"data/metadata.csv": b"file_name,text,text\na.png,x,y\n"}
    yield "columns without names", {"data/metadata.csv": b"file_name,,\na.png,x,y\n"}
    yield "a wide cell", {"data/metadata.csv": b"file_name,text\na.png," + b"x" * (csv.field_size_limit() + 5) + b"\n"}
    yield "a table of line breaks", {"data/metadata.csv": b"\r\r\n\n\r" * 50}
    for name, members in (("of links", (("a.png", tarfile.SYMTYPE),)), ("of devices", (("a.png", tarfile.CHRTYPE),)),
                          ("that leads out", (("../../a.png", tarfile.REGTYPE), ("../../a.txt", tarfile.REGTYPE))),
                          ("without samples", ())):  # fmt: skip
        yield f"an archive {name}", {"data/train.tar": _archive(members)}
    whole = _archive((("a.png", tarfile.REGTYPE), ("a.txt", tarfile.REGTYPE)))
    for what, content in damaged(whole, "archive"):
        yield f"an archive {what}", {"data/train.tar": content}
        yield f"a packed archive {what}", {"data/train.tar.gz": gzip.compress(content, mtime=0)}


def _archive(members: tuple[tuple[str, bytes], ...]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            content = b"text" if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _folders() -> dict[str, Callable[[Path], object]]:
    """Changes of a folder `data` that holds one image."""
    names = ("[red].png", "a\udcff.png", "\x1b[2J.png", "new\nline.png", "x" * 240 + ".png", " .png", "-rf.png")
    return {
        "empty": lambda folder: (folder / "data" / "a.png").unlink(),
        "odd names": lambda folder: [os.link(folder / "data" / "a.png", folder / "data" / name) for name in names],
        "a link to itself": lambda folder: (folder / "data" / "l.png").symlink_to("l.png"),
        "a link to the folder above": lambda folder: (folder / "data" / "up").symlink_to(".."),
        "a link out": lambda folder: (folder / "data" / "p.png").symlink_to("/etc/passwd"),
        "a pipe": lambda folder: os.mkfifo(folder / "data" / "metadata.jsonl"),
        "a pipe as image": lambda folder: os.mkfifo(folder / "data" / "b.png"),
        "a folder as label file": lambda folder: (folder / "data" / "metadata.jsonl").mkdir(),
        "a folder as image": lambda folder: (folder / "data" / "b.png").mkdir(),
        "a device as label file": lambda folder: (folder / "data" / "metadata.jsonl").symlink_to("/dev/zero"),
        "deep folders": lambda folder: Path(folder, "data", *["d"] * 200).mkdir(parents=True),
        "a large empty label file": partial(_sparse, name="metadata.jsonl"),
        "a large empty document": partial(_sparse, name="data.json"),
        "a large empty table": partial(_sparse, name="metadata.csv"),
        "a large empty image": partial(_sparse, name="b.png"),
    }


def _sparse(folder: Path, name: str) -> None:
    with (folder / "data" / name).open("wb") as file:
        file.truncate(12 * 2**30)


# --- Media -----------------------------------------------------------------------------------------------------------


def media(workspace: Path) -> Iterator[Case]:
    """Files of every common format, damaged, decoded as `tailor check` decodes them."""
    for name, content in _whole_media():
        for what, bad in damaged(content, name):
            yield Case(f"{name} {what}", partial(_decode, Path(name)), {name: bad})
        for other in ("x.png", "x.pdf", "x.mp4", "x.wav", "x.mp3", "x.tif"):
            if Path(other).suffix != Path(name).suffix:
                yield Case(f"{name} called {other}", partial(_decode, Path(other)), {other: content})


def _decode(path: Path) -> None:
    from mllm_tailor.core.errors import DataError
    from mllm_tailor.core.sample import Media
    from mllm_tailor.media.decode_worker import decode_one
    from mllm_tailor.media.open import pages_of
    from mllm_tailor.media.source import media_kind

    kind = media_kind(path)
    assert kind is not None, path
    try:
        pages = pages_of(path, kind)
    except DataError:
        pages = (Media(kind, path),)
    for page in pages[:3]:
        if problem := decode_one(page).problem:
            print(f"Error: {problem}")


def _whole_media() -> Iterator[tuple[str, bytes]]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tif", "a.pdf"):
        stream = io.BytesIO()
        image.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(name[2:], name[2:].upper()))
        yield name, stream.getvalue()
    sound = np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)
    for name, form in (("a.wav", "WAV"), ("a.flac", "FLAC"), ("a.mp3", "MP3"), ("a.ogg", "OGG"), ("a.aiff", "AIFF")):
        stream = io.BytesIO()
        soundfile.write(stream, sound, 8000, format=form)
        yield name, stream.getvalue()
    for name, form in (("a.mkv", "matroska"), ("a.mp4", "mp4"), ("a.avi", "avi")):
        stream = io.BytesIO()
        with av.open(stream, "w", format=form) as container:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for level in range(8):
                frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (level * 20, 9, 9)))
                container.mux(video.encode(frame))
            container.mux(video.encode())
        yield name, stream.getvalue()
