"""Our decoding equals `generate` of transformers for every family, and held to a schema it equals itself one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import tiny_families
from PIL import Image

from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.generation import predict
from mllm_tailor.generation.constrain import Vocabulary
from mllm_tailor.generation.predictor import make_engine
from mllm_tailor.models import LoadedModel, load_model, prompt_inputs
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task

FIELDS = {"name": {"type": "string", "max_length": 5}, "kind": {"type": "choice", "choices": ["cash", "card"]}}
SETTINGS = Predict(batch_size=4, max_new_tokens=12)


def media_of(folder: Path, kind: str) -> list[Media]:
    """Three pictures or recordings of different sizes."""
    rng, made = np.random.default_rng(0), []
    for number, size in enumerate([(40, 30), (40, 60), (90, 40)]):
        if kind == "image":
            path = folder / f"{number}.png"
            Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
        else:
            soundfile = pytest.importorskip("soundfile")
            path = folder / f"{number}.wav"
            soundfile.write(path, rng.uniform(-0.5, 0.5, 100 * size[0]), 16_000)
        made.append(Media(kind, path))
    return made


def enliven(model: LoadedModel) -> None:
    """Larger weights in the language model, so that what is seen changes what is said."""
    random = torch.Generator().manual_seed(0)
    for name, weight in model.model.named_parameters():
        if weight.ndim > 1 and ("language" in name or "lm_head" in name or "text" in name):
            torch.nn.init.normal_(weight, std=0.3, generator=random)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(tiny_families.RECIPES))
def test_decoding_equals_generate(family, tmp_path):
    if family == "granite_speech":
        pytest.importorskip("torchaudio", reason="Granite Speech reads recordings with torchaudio")
    tiny_families.write_family(tmp_path / "model", family)
    model = load_model(tmp_path / "model", dtype="float32")
    enliven(model)
    kind = "image" if "image" in model.family.media else "audio"
    samples = [
        Sample(f"{number}{question}", (media,), prompt=question)
        for number, media in enumerate(media_of(tmp_path, kind))
        for question in ("Who?", "How much is it?")
    ]
    ask, extract = open_task("answer", {}), open_task("extract", FIELDS)
    width = model.model.config.get_text_config().vocab_size
    vocabulary = Vocabulary(model.tokenizer, width, sorted(model.stop_ids))
    for sample, prediction in zip(samples, predict(model, ask, samples, SETTINGS), strict=True):
        inputs = prompt_inputs([ask.phrase(sample)], model)
        with torch.no_grad():
            ids = model.model.generate(
                **inputs, max_new_tokens=12, do_sample=False, eos_token_id=sorted(model.stop_ids)
            )
        assert prediction.text == vocabulary.text_of(ids[0, inputs["input_ids"].shape[1] :].tolist())
    together = predict(model, extract, samples[::2], SETTINGS)
    singly = Predict(batch_size=1, max_new_tokens=12)
    engine = make_engine(model, singly, feed_forced=False)
    alone = predict(model, extract, samples[::2], singly, engine=engine)
    assert [found.text for found in together] == [found.text for found in alone]
    assert not any(found.problem for found in together)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mllama", "qwen2_vl", "idefics3"])
def test_prompts_of_no_one_and_two_images_share_a_batch(family, tmp_path):
    """Replies are those of each prompt alone, also where rows end and others join."""
    tiny_families.write_family(tmp_path / "model", family)
    model = load_model(tmp_path / "model", dtype="float32")
    enliven(model)
    images, ask = media_of(tmp_path, "image"), open_task("answer", {})
    media = [(), images[:1], images[1:], (), images[2:], images[:2]]
    samples = [Sample(str(number), tuple(files), prompt="Who is it?") for number, files in enumerate(media)]
    together = predict(model, ask, samples, Predict(batch_size=3, max_new_tokens=9))
    alone = [predict(model, ask, [sample], Predict(batch_size=1, max_new_tokens=9))[0] for sample in samples]
    assert [prediction.text for prediction in together] == [prediction.text for prediction in alone]
    assert len({prediction.text for prediction in together}) > 1
