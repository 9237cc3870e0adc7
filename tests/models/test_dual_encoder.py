"""CLIP and SigLIP through the one door, on tiny random checkpoints of their real classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures.images import picture
from fixtures.pairs import KINDS, write_pair_family
from fixtures.small_job import open_small, shake, small_recipe

from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.sample import Sample
from mllm_tailor.media.open import open_image
from mllm_tailor.methods import make_method, merge
from mllm_tailor.models import (
    LoadedModel,
    collate,
    count_tokens,
    encode,
    generate,
    load_model,
    media_features,
    save_model,
)
from mllm_tailor.models.inputs.dual_encoder import embed_images, embed_texts

PAIRS = [
    Sample("a", (picture(60, 40),), answer="a red till receipt"),
    Sample("b", (picture(90, 70, 1),), answer="two dogs, asleep on the sofa"),
    Sample("c", (picture(40, 90, 2),), prompt="rain"),
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pairs") / str(request.param)
    write_pair_family(found, request.param)
    return found


@torch.no_grad()
def similarity(model: LoadedModel) -> torch.Tensor:
    """(pictures, texts) cosines."""
    model.model.eval()
    batch = collate([encode(sample, model) for sample in PAIRS], model)
    return embed_images(model, batch) @ embed_texts(model, batch).T


@pytest.mark.slow
def test_the_same_numbers_as_the_processor_and_model_of_transformers(folder: Path) -> None:
    model = load_model(folder)
    pixels = [open_image(sample.media[0]) for sample in PAIRS]
    texts = [sample.answer or sample.prompt for sample in PAIRS]
    filled = {"padding": "max_length"} if folder.name == "siglip" else {"padding": True}  # as each was trained
    inputs = model.processor(text=texts, images=pixels, return_tensors="pt", **filled)
    batch = collate([encode(sample, model) for sample in PAIRS], model)
    assert set(batch) == set(inputs) and all(torch.equal(batch[name], inputs[name]) for name in batch)
    with torch.no_grad():
        told = model.model(**inputs)
    mine = similarity(model) * model.model.logit_scale.exp() + getattr(model.model, "logit_bias", 0.0)
    assert torch.allclose(mine, told.logits_per_image, atol=1e-5)
    assert (mine[0] - mine[1]).abs().max() > 1e-3  # it tells pictures apart


@pytest.mark.slow
def test_lora_on_every_part_saved_reloaded_and_merged(folder: Path, tmp_path: Path) -> None:
    parts = [part for part, names in load_model(folder).family.linear_names.items() if names]
    assert parts == ["vision", "projector", "language"]
    method = make_method(small_recipe({"name": "lora", "rank": 2, "parts": parts}))
    model = open_small(folder, method)
    before = similarity(model)
    counts = method.apply(model).counts
    assert all(counts[part] > 0 for part in parts)
    batch = collate([encode(sample, model) for sample in PAIRS], model)
    model.model(**batch, return_loss=True).loss.backward()
    second = [weight for name, weight in model.model.named_parameters() if "lora_B" in name]
    assert second and all(weight.grad is not None and weight.grad.any() for weight in second)
    shake(model, 0.05)
    trained = similarity(model)
    assert (trained - before).abs().max() > 1e-3
    method.save(model, tmp_path / "adapter")
    again = open_small(folder, method)
    method.load(again, tmp_path / "adapter")
    assert torch.allclose(similarity(again), trained, atol=1e-6)
    merge(again)
    save_model(again, tmp_path / "merged")
    assert torch.allclose(similarity(load_model(tmp_path / "merged")), trained, atol=1e-5)


def test_every_weight_belongs_to_one_part(folder: Path) -> None:
    model = load_model(folder)
    prefixes = [prefix for group in model.family.parts.values() for prefix in group]
    for name, _ in model.model.named_parameters():
        assert sum(name == prefix or name.startswith(prefix + ".") for prefix in prefixes) == 1, name


@pytest.mark.slow
def test_nf4(folder: Path) -> None:
    model = load_model(folder, quantize="nf4")
    assert (similarity(model) - similarity(load_model(folder))).abs().max() < 0.5


def test_lengths_and_features(folder: Path) -> None:
    model = load_model(folder)
    assert [count_tokens(sample, model) for sample in PAIRS] == [encode(sample, model).length for sample in PAIRS]
    features = media_features(PAIRS, model)
    assert len(features) == 3 and features[0].any()


def test_what_does_not_fit_is_refused_by_row(folder: Path) -> None:
    model = load_model(folder)
    with pytest.raises(ModelError, match="generates no replies"):
        generate(PAIRS, model)
    for broken, said in (
        (Sample("x", PAIRS[0].media, answer=" ", source="rows.csv:3"), "rows.csv:3: 1 images and 0 words"),
        (Sample("x", (), answer="words", source="rows.csv:4"), "rows.csv:4: 0 images"),
        (Sample("x", PAIRS[0].media, answer="far too long " * 30, source="rows.csv:5"), r"rows.csv:5: \d+ tokens"),
    ):
        with pytest.raises(DataError, match=said):
            encode(broken, model)
