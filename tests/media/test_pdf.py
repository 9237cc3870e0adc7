"""Documents with pages: every page becomes a picture of a known size; locked, damaged and endless ones are refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.pdfs import drawn, pdf
from fixtures.real_data import real_data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_tailor.core import optional
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media
from mllm_tailor.data import read_samples
from mllm_tailor.generation import read_inputs
from mllm_tailor.media.open import image_size, open_image, page_count, pages_of
from mllm_tailor.media.pdf import draw_page
from mllm_tailor.media.source import ImageLimits


def tiff(pages: int = 3) -> bytes:
    pictures = [Image.new("RGB", (20 + number, 10), (60 * number, 0, 0)) for number in range(pages)]
    stream = io.BytesIO()
    pictures[0].save(stream, "TIFF", save_all=True, append_images=pictures[1:])
    return stream.getvalue()


@pytest.mark.parametrize(("name", "make"), [("a.pdf", pdf), ("a.tif", tiff), ("named.wrongly", pdf)])
def test_every_page_opens_with_the_size_known_beforehand(name: str, make: object, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(make())  # type: ignore[operator]
    pages = [Media("image", path, page=page) for page in range(page_count(Media("image", path)))]
    sizes = [open_image(page).size for page in pages]
    assert sizes == [image_size(page) for page in pages] and len(set(sizes)) == 3
    if path.suffix != ".wrongly":
        assert pages_of(path) == tuple(pages)


def test_a_single_page_is_the_file_itself(tmp_path: Path) -> None:
    for name, data in (("a.pdf", pdf(1)), ("a.tiff", tiff(1)), ("a.png", b"")):
        (tmp_path / name).write_bytes(data)
        assert pages_of(tmp_path / name) == (Media("image", tmp_path / name),)


def test_pages_are_drawn_upright_at_the_stated_resolution() -> None:
    page = np.asarray(draw_page(Media("image", data=drawn()), resolution=72))
    assert page.shape == (72, 144, 3)
    assert (page[36, 10] == (255, 0, 0)).all() and (page[36, 130] == 255).all()
    assert open_image(Media("image", data=drawn())).size == (300, 150)
    turned = Media("image", data=drawn(turn=90))
    assert open_image(turned).size == image_size(turned) == (150, 300)


@pytest.mark.parametrize("make", [pdf, tiff])
def test_several_pages_are_never_read_as_their_first(make: object, tmp_path: Path) -> None:
    path = tmp_path / "several"
    path.write_bytes(make())  # type: ignore[operator]
    for read in (open_image, image_size):
        with pytest.raises(DataError, match="pages and none is named"):
            read(Media("image", path))
        with pytest.raises(DataError, match=r"no such page|has no page 8"):
            read(Media("image", path, page=7))


REFUSED = {
    "password": (lambda: drawn(encrypted=True), "locked with a password — save a copy without it"),
    "cut off": (lambda: pdf()[:100], "cut off"),
    "text": (lambda: b"hello", "damaged, cut off or no PDF"),
    "empty": (lambda: b"", "the file is empty"),
    "2,000 pages": (lambda: pdf(2000), "2,000 pages, over the limit of 100 — keep the pages that matter"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_documents_are_refused_by_name(name: str, tmp_path: Path) -> None:
    make, words = REFUSED[name]
    path = tmp_path / "bad.pdf"
    path.write_bytes(make())
    with pytest.raises(DataError, match=rf"bad\.pdf: .*{words}"):
        pages_of(path)


def test_a_page_the_size_of_a_house_is_refused_before_it_is_drawn() -> None:
    huge = Media("image", data=pdf(1, 14_000, 14_000))
    for read in (open_image, image_size):
        with pytest.raises(DataError, match="at 150 dots an inch, outside the limits"):
            read(huge)


def test_a_missing_library_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    with pytest.raises(DataError, match=r"needs pypdfium2 — pip install 'mllm-tailor\[pdf\]'"):
        open_image(Media("image", data=pdf(1)))


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
@example(share=0.5)
@example(share=0.99)
def test_a_document_that_is_cut_off_is_refused(share: float) -> None:
    content = pdf(3)
    cut = content.rindex(b"%%EOF") + len(b"%%EOF")
    assert page_count(Media("image", data=content[:cut] + b"\r\n\0")) == 3
    with pytest.raises(DataError, match=r" — "):
        page_count(Media("image", data=content[: max(1, int(share * cut))]))


def test_an_update_that_is_cut_off_is_refused() -> None:
    """Changed objects lie behind the first end mark; without theirs, pdfium would show the document as it was."""
    content = pdf(3)
    with pytest.raises(DataError, match="cut off"):
        page_count(Media("image", data=content + b"\n7 0 obj\n<</Type/Page"))


@given(st.data())
@settings(max_examples=40)
def test_damage_anywhere_is_drawn_or_refused(data: st.DataObject) -> None:
    whole = bytearray(drawn())
    for _ in range(data.draw(st.integers(1, 10))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    media = Media("image", data=bytes(whole))
    try:
        assert open_image(media, ImageLimits(pixels=10**6)).size == image_size(media)
    except DataError as error:
        assert str(error).startswith("inline image")


def test_readers_show_every_page(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf())
    (tmp_path / "b.pdf").write_bytes(drawn(encrypted=True))
    rows = [{"image": "a.pdf", "question": "?", "answer": "!"}, {"image": "b.pdf", "question": "?", "answer": "!"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    faults: list[object] = []
    samples = read_samples(tmp_path / "train.jsonl", on_issue=faults.append).samples
    assert [[page.page for page in sample.media] for sample in samples] == [[0, 1, 2]]
    assert len(faults) == 1 and "password" in str(faults[0])
    rows[1]["id"] = "locked"
    (tmp_path / "ask.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [(sample.id, len(sample.media)) for sample in read_inputs([tmp_path / "ask.jsonl"])] == [
        ("a", 3),
        ("locked", 0),
    ]
    found = {sample.id: sample for sample in read_inputs([tmp_path / "a.pdf", tmp_path / "b.pdf"])}
    assert len(found["a"].media) == 3 and "password" in found["b"].extra["problem"]


def test_real_invoices() -> None:
    for path in sorted(real_data("invoice_samples").glob("*.pdf"))[:4]:
        for page in pages_of(path):
            image = open_image(page)
            assert image.size == image_size(page) and np.asarray(image).std() > 5
