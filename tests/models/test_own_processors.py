"""Families whose pictures, recordings or prompts our own code reads: Phi-4-multimodal and Voxtral."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.families import sound
from fixtures.images import picture
from fixtures.small_job import difference, logits
from fixtures.tiny_families import write_family
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample, Turn
from mllm_tailor.models import LoadedModel, encode, load_model, save_model
from mllm_tailor.models.inputs.phi4 import DynamicCrops


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("phi")
    write_family(folder, "phi4_multimodal")
    return load_model(folder, dtype="float32")


@pytest.fixture(scope="module")
def voxtral(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("voxtral")
    write_family(folder, "voxtral")
    return load_model(folder, dtype="float32")


# Phi-4-multimodal: section 2.2 of the paper and the published preprocessing, worked out square by square


SIZES = [
    (448, 448),
    (100, 100),
    (449, 448),
    (1000, 300),
    (300, 1000),
    (2000, 1500),
    (640, 480),
    (447, 895),
    (5000, 700),
]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [36, 6])
def test_pictures_become_squares_masks_and_tokens(size: tuple[int, int], most: int) -> None:
    width, height = size
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    found = DynamicCrops(dynamic_hd=most)([image])
    columns, rows = math.ceil(width / 448), math.ceil(height / 448)
    if columns * rows > most:
        shapes = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
        columns, rows = min(shapes, key=lambda shape: (abs(width / height - shape[0] / shape[1]), -math.prod(shape)))
    assert found["image_sizes"].tolist() == [[448 * rows, 448 * columns]]
    if 448 * columns / width < 448 * rows / height:
        inner = (448 * columns, int(height * (448 * columns / width)))
    else:
        inner = (int(width * (448 * rows / height)), 448 * rows)
    shown = np.full((448 * rows, 448 * columns, 3), 255, np.uint8)
    shown[: inner[1], : inner[0]] = np.asarray(image.resize(inner, Image.Resampling.BILINEAR))
    pixels, mask = found["image_pixel_values"][0], found["image_attention_mask"][0]
    assert len(pixels) == len(mask) == 1 + rows * columns and mask[0].all()
    tokens = 16 * 17 + 1  # the whole picture, its line ends, and the one between
    lines, seen = set(), set()
    for row in range(rows):
        for column in range(columns):
            number = 1 + row * columns + column
            square = shown[448 * row : 448 * (row + 1), 448 * column : 448 * (column + 1)]
            expected = torch.from_numpy(square.copy()).permute(2, 0, 1).float() / 255 * 2 - 1
            assert (pixels[number] - expected).abs().max() < 1e-6
            for down in range(32):
                for across in range(32):
                    # A patch is hidden once as many whole patches are blank behind the picture.
                    below = 32 * rows - (32 * row + down) > (448 * rows - inner[1]) // 14
                    beside = 32 * columns - (32 * column + across) > (448 * columns - inner[0]) // 14
                    assert mask[number, down, across] == float(below and beside)
                    if below and beside and down % 2 == across % 2 == 0:
                        seen.add((32 * row + down, 32 * column + across))
                        lines.add(32 * row + down)
    assert found["num_img_tokens"] == [tokens + len(seen) + len(lines)]


@pytest.mark.slow
def test_a_picture_too_thin_to_be_read_is_refused_by_row(phi: LoadedModel) -> None:
    sample = Sample("a", (picture(3000, 3),), "What?", source="labels.csv:4")
    with pytest.raises(DataError, match=r"labels\.csv:4: .*3000 x 3 pixels are too long and thin"):
        encode(sample, phi)


@pytest.mark.slow
def test_samples_of_every_kind_in_one_batch_read_as_alone(phi: LoadedModel) -> None:
    """The native class would project all recordings as beside pictures, and read silence behind the shorter ones."""
    media = [
        (picture(60, 40),),
        (sound(),),
        (),
        (sound(0.4, pitch=300), picture(150, 70, 1)),
        (picture(50, 120, 2), picture(90, 30, 3)),
    ]
    samples = [Sample(str(number), parts, f"What of {number}?", "this") for number, parts in enumerate(media)]
    together = logits(phi, samples)
    for row, sample in zip(together, samples, strict=True):
        alone = logits(phi, [sample])[0]
        assert difference(alone, row[: len(alone)]) < 1e-5
    reader = phi.model.model.embed_tokens_extend
    ours = reader.__dict__.pop("forward")
    try:  # what this is there for
        mixed = logits(phi, samples[:2])[1]
        assert difference(mixed, together[1, : len(mixed)]) > 1e-3
    finally:
        reader.forward = ours


def test_adapters_of_the_checkpoint_that_are_not_applied_are_named(
    phi: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    (phi.folder / "vision-lora").mkdir()
    load_model(phi.folder)
    (phi.folder / "vision-lora").rmdir()
    assert "not applied: vision-lora" in " ".join(caplog.text.split())


def test_a_prompt_is_the_published_one(phi: LoadedModel) -> None:
    sample = Sample("a", (picture(60, 40), sound()), "What is this?", "A tone", system="Be brief.")
    text = phi.tokenizer.decode(encode(sample, phi).ids)
    text = text.replace("<|image|>" * text.count("<|image|>"), "(picture)")
    text = text.replace("<|audio|>" * text.count("<|audio|>"), "(recording)")
    assert text == (
        "<|system|>Be brief.<|end|><|user|>(picture)(recording)What is this?<|end|><|assistant|>A tone<|end|>"
    )


# Voxtral


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


BEFORE = numbers("1 3 25")
BEHIND = numbers("122 139 132 151 98 4 100 67 151 146 145 136 2 3 107 146 154 67 139 140 138 139 98 4 87 87 83 2")
SYSTEM = numbers(
    "1 17 101 136 67 133 149 140 136 137 81 18 3 122 146 149 135 150 67 67 132 143 146 145 136 45 300 192 "
    "267 163 166 67 230 204 4 137 296 136 79 295 67 136 145 135 2"
)


def test_a_conversation_has_the_ids_of_mistral_common(voxtral: LoadedModel) -> None:
    """The numbers are those of mistral-common 1.13.1 for the same vocabulary file and messages."""
    turns = (Turn("user", "What?"), Turn("assistant", "A tone"))
    asked = Sample("a", (sound(),), "How high?", "440", history=turns)
    ids = encode(asked, voxtral).ids.tolist()
    assert ids == [*BEFORE, *[24] * 375, *BEHIND]
    plain = Sample("a", (), "Words  alone\n思考 é", "fine, the end", system="Be brief.")
    assert encode(plain, voxtral).ids.tolist() == SYSTEM


@pytest.mark.parametrize(("seconds", "chunks"), [(0.5, 1), (30.0, 1), (31.0, 2), (61.0, 3)])
def test_recordings_are_filled_up_to_half_minutes(voxtral: LoadedModel, seconds: float, chunks: int) -> None:
    encoded = encode(Sample("a", (sound(seconds), sound()), "?"), voxtral)
    assert encoded.media["input_features"].shape == (chunks + 1, 16, 3000)
    assert (encoded.ids == 24).sum() == 375 * (chunks + 1)


def test_a_saved_folder_keeps_the_vocabulary_file(voxtral: LoadedModel, tmp_path: Path) -> None:
    save_model(voxtral, tmp_path / "saved")
    assert (tmp_path / "saved" / "tekken.json").read_bytes() == (voxtral.folder / "tekken.json").read_bytes()
    again = load_model(tmp_path / "saved", dtype="float32")
    sample = Sample("a", (sound(),), "Hi [INST] there?", "the 12")
    assert torch.equal(encode(sample, again).ids, encode(sample, voxtral).ids)


def test_a_picture_is_refused(voxtral: LoadedModel) -> None:
    with pytest.raises(DataError, match="reads recordings, not images"):
        encode(Sample("a", (Media("image", data=b"x"),), "?"), voxtral)
