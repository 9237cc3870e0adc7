"""Every family, from opening to merging, on a tiny random checkpoint of its real classes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.families import clip, family_folder, samples_of, sound
from fixtures.images import picture
from fixtures.real_data import real_data
from fixtures.small_job import difference, logits, open_small, shake, small_recipe
from fixtures.tiny_families import RECIPES, write_family
from safetensors.torch import load_file, save_file

from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.media.video import read_frames
from mllm_tailor.methods import make_method, merge
from mllm_tailor.models import (
    FAMILIES,
    NO_LOSS,
    InputSettings,
    LoadedModel,
    collate,
    count_tokens,
    encode,
    generate,
    load_meta_model,
    load_model,
    media_features,
    save_model,
)
from mllm_tailor.models.chat_template_builder import TURN_END
from mllm_tailor.models.families import guess_family
from mllm_tailor.models.inputs.granite_speech import SpeechFeatures

UNBUILT = {"internvl": "has tests of its own", "qwen2_5_omni": "is its thinker, wrapped; see below"}


def test_every_family_is_tested() -> None:
    writing = {name for name, family in FAMILIES.items() if not family.compares}  # the others: test_models_pairs.py
    assert writing == set(RECIPES) | set(UNBUILT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_reading_and_replying(kind: str, families: Path) -> None:
    model, samples = load_model(family_folder(families, kind), dtype="float32"), samples_of(kind)
    _labels_lie_on_answers(model, samples)
    _a_token_sees_none_behind_it(model, samples[0])
    _control_tokens_stay_letters(model, samples[0])
    together = generate(samples, model, max_new_tokens=5)
    assert together == [generate([sample], model, max_new_tokens=5)[0] for sample in samples]
    if "image" in model.family.media:
        features = media_features([samples[0], samples[1], samples[0]], model)
        assert np.array_equal(features[0], features[2]) and not np.allclose(features[0], features[1])


def _labels_lie_on_answers(model: LoadedModel, samples: list[Sample]) -> None:
    for sample in samples:
        encoded = encode(sample, model)
        supervised = encoded.labels != NO_LOSS
        assert model.tokenizer.decode(encoded.ids[supervised]) == f"{sample.answer}{model.tokenizer.eos_token}"
        assert torch.equal(encode(sample.unlabelled(), model).ids, encoded.ids[: encoded.answer_start])
        assert count_tokens(sample, model) == encoded.length


@torch.no_grad()
def _a_token_sees_none_behind_it(model: LoadedModel, sample: Sample) -> None:
    """Some families let prompt tokens see each other both ways; an answer must not be seen before it is given."""
    encoded = encode(sample, model)
    batch = collate([encoded], model)
    batch.pop("labels")
    before = model.model(**batch).logits
    last = encoded.length - 3
    batch["input_ids"][0, last] = 100
    after = model.model(**batch).logits
    assert torch.equal(before[:, :last], after[:, :last])
    assert not torch.equal(before[:, last:], after[:, last:])


def _control_tokens_stay_letters(model: LoadedModel, sample: Sample) -> None:
    special = {place: token.content for place, token in model.tokenizer.added_tokens_decoder.items() if token.special}
    typed = list(special.values())
    control = [
        [token for token in encode(Sample("x", sample.media, prompt, answer), model).ids.tolist() if token in special]
        for prompt, answer in (("a b", "c d"), (f"a {''.join(typed)} b", f"c {typed[0]}{typed[-1]} d"))
    ]
    assert control[0] == control[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_lora_on_every_part_saved_reloaded_and_merged(kind: str, families: Path, tmp_path: Path) -> None:
    folder, samples = family_folder(families, kind), samples_of(kind)
    parts = [part for part, names in load_model(folder).family.linear_names.items() if names]
    assert {"language", "head"} < set(parts) and {"vision", "audio"} & set(parts)
    method = make_method(small_recipe({"name": "lora", "rank": 2, "parts": parts}))
    model = open_small(folder, method)
    assert method.num_trainable_parameters(load_meta_model(folder)) == method.num_trainable_parameters(model)
    applied = method.apply(model)
    assert all(applied.counts[part] > 0 for part in parts)
    batch = collate([encode(sample, model) for sample in samples], model)
    model.model(**batch).loss.backward()
    moved = {name for name, weight in model.model.named_parameters() if weight.grad is not None and weight.grad.any()}
    for part in parts:
        prefixes = model.family.parts[part]
        assert any(prefix in name for name in moved for prefix in prefixes) or part in ("vision", "audio")
    shake(model, 0.05)
    trained = logits(model, samples)
    assert generate(samples, model, max_new_tokens=3)
    method.save(model, tmp_path / "adapter")
    again = open_small(folder, method)
    assert difference(logits(again, samples), trained) > 1e-3
    method.load(again, tmp_path / "adapter")
    assert difference(logits(again, samples), trained) < 1e-6
    merge(again)
    save_model(again, tmp_path / "merged")
    assert difference(logits(load_model(tmp_path / "merged", dtype="float32"), samples), trained) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_nf4(kind: str, families: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    model = load_model(family_folder(families, kind), quantize="nf4", quantize_skip=("vision", "audio", "projector"))
    packed = [name for name, module in model.model.named_modules() if isinstance(module, Linear4bit)]
    language = model.family.parts["language"]
    assert len(packed) >= 8 and all(name.startswith(language) for name in packed)
    assert len(generate(samples_of(kind)[:1], model, max_new_tokens=2)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_bf16(kind: str, families: Path) -> None:
    exact, rough = (load_model(family_folder(families, kind), dtype=number) for number in ("float32", "bfloat16"))
    assert rough.model.dtype == torch.bfloat16
    samples = samples_of(kind)[:2]
    one, other = (logits(model, samples).float() for model in (exact, rough))
    assert 0 < difference(one, other) < 0.2 * one.abs().max()  # 8 bits of every number are kept
    assert len(generate(samples, rough, max_new_tokens=2)) == 2


@pytest.mark.slow
def test_a_whole_omni_checkpoint_opens_its_thinker(families: Path, tmp_path: Path) -> None:
    thinker = family_folder(families, "qwen2_5_omni_thinker")
    whole = tmp_path / "whole"
    whole.mkdir()
    for file in thinker.iterdir():
        if file.suffix != ".safetensors":
            (whole / file.name).write_bytes(file.read_bytes())
    config = json.loads((thinker / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": config}))
    weights = {f"thinker.{name}": weight for name, weight in load_file(thinker / "model.safetensors").items()}
    weights["talker.codec_head.weight"] = torch.zeros(2, 2)
    save_file(weights, whole / "model.safetensors", metadata={"format": "pt"})
    samples = samples_of("qwen2_5_omni_thinker")
    opened = [load_model(folder, dtype="float32") for folder in (thinker, whole)]
    assert torch.equal(*(logits(model, samples) for model in opened))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "idefics3", "qwen2_audio"])
def test_an_unknown_family_is_guessed_and_says_so(
    kind: str, families: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = family_folder(families, kind)
    known = load_model(folder)
    without = {name: family for name, family in FAMILIES.items() if name != kind}
    monkeypatch.setattr("mllm_tailor.models.load.FAMILIES", without)
    model = load_model(folder)
    said = " ".join(caplog.text.split())
    assert f"{kind} is not a family described here. Guessed from its modules" in said
    assert model.family.parts == known.family.parts
    sample = Sample("a", (sound(),) if kind == "qwen2_audio" else (picture(60, 40),), "Hi?")
    assert generate([sample], model, max_new_tokens=2) == generate([sample], known, max_new_tokens=2)


def test_a_model_without_words_is_not_guessed() -> None:
    with pytest.raises(ModelError, match="no language model among"):
        guess_family("odd", torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.mark.slow
def test_different_numbers_of_pictures_in_one_batch(families: Path) -> None:
    """Llama 3.2 Vision pads pictures and their masks, and what is padded must not be seen."""
    model = load_model(family_folder(families, "mllama"), dtype="float32")
    counts = [(picture(60, 40),), (), (picture(90, 70, 1), picture(30, 60, 2), picture(50, 50, 3))]
    samples = [Sample(str(len(media)), media, "Which of them?", "none") for media in counts]
    together = logits(model, samples)
    for row, sample in zip(together, samples, strict=True):
        alone = logits(model, [sample])[0]
        assert difference(alone, row[: len(alone)]) < 1e-5
    replies = [generate([sample], model, max_new_tokens=5)[0] for sample in samples]
    assert generate(samples, model, max_new_tokens=5) == replies


@pytest.mark.slow
def test_templates_that_end_no_turn_and_templates_in_the_older_form(tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    write_family(folder, "llava")
    (folder / "chat_template.jinja").unlink()
    template = "{% for m in messages %}{{ m['role'] | upper }}: {% for p in m['content'] %}{{ '<image>\\n' "
    template += "if p['type'] == 'image' else p['text'] + ' ' }}{% endfor %}{% endfor %}"
    template += "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    model = load_model(folder)
    encoded = encode(Sample("a", (picture(60, 40),), "Hi?", "yes"), model)
    supervised = encoded.labels[encoded.labels != NO_LOSS]
    assert model.tokenizer.decode(supervised) == f"yes{TURN_END}"
    text = model.tokenizer.decode(encoded.ids).replace("<image>", "")
    assert text == f"USER: \nHi? ASSISTANT: yes{TURN_END}"


def test_a_processor_that_is_damaged(families: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    write_family(folder, "llava")
    (folder / "processor_config.json").unlink()
    with pytest.raises(ModelError, match="tokenizer or processor cannot be read"):
        load_model(folder)


# Clips and recordings


def test_clips_are_read_frame_by_frame(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_folder, inputs=InputSettings(frames=5))
    sample = Sample("a", (clip(tmp_path / "a.mp4"), picture(60, 120)), "What happens?", "It brightens.")
    encoded = encode(sample, model)
    assert len(encoded.media["pixel_values"]) == model.frames + 3
    assert count_tokens(sample, model) == encoded.length
    text = model.tokenizer.decode(encoded.ids).replace("<IMG_CONTEXT>", "")
    assert text.startswith("<|im_start|>user\nFrame1: <img></img>\nFrame2: <img></img>\n")
    assert f"Frame{model.frames}: <img></img>\n<img></img>\nWhat happens?" in text
    assert len(generate([sample, Sample("b", (), "Hi")], model, max_new_tokens=2)) == 2


SEEING_CLIPS = [name for name in RECIPES if FAMILIES[name].video_processor]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEEING_CLIPS)
def test_clips_of_every_family_that_sees_them(kind: str, families: Path, tmp_path: Path) -> None:
    model = load_model(family_folder(families, kind), dtype="float32", inputs=InputSettings(frames=6))
    clips = [Sample("a", (clip(tmp_path / "a.mp4"),), "What happens?", "It brightens.")]
    clips.append(Sample("b", (clip(tmp_path / "b.mp4", 12),), "And here?", "Less."))
    other = () if kind == "glm4v" else (picture(60, 40),)  # GLM cannot tell pictures from clips within a batch
    samples = [*clips, Sample("c", other, "Hi?", "yes")]
    _labels_lie_on_answers(model, samples)
    replies = [generate([sample], model, max_new_tokens=4)[0] for sample in samples]
    assert generate(samples, model, max_new_tokens=4) == replies
    batch = collate([encode(sample, model) for sample in samples], model)
    model.model(**batch).loss.backward()
    seen = [
        torch.cat([value.flatten() for name, value in encode(sample, model).media.items() if "pixel_values" in name])
        for sample in clips
    ]
    assert seen[0].numel() == seen[1].numel() and seen[1].mean() < seen[0].mean()  # the shorter clip stays darker
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", dtype="float32", inputs=InputSettings(frames=6))
    assert torch.equal(logits(again, clips[:1]), logits(model, clips[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl", "llava_next_video"])
def test_frames_come_in_order_and_whole(kind: str, families: Path, tmp_path: Path) -> None:
    """Every frame is of one grey; where each of them ended up is read off the pixel values."""
    model = load_model(family_folder(families, kind), inputs=InputSettings(frames=5))
    media = clip(tmp_path / "a.mp4")
    found = encode(Sample("a", (media,), "What?"), model).media
    pictures = model.processor.image_processor
    values = found["pixel_values_videos"]
    if "video_grid_thw" in found:
        times, height, width = found["video_grid_thw"][0].tolist()
        assert times == 3 and values.shape == (times * height * width, 3 * 2 * 14 * 14)
        values = values.reshape(times, height * width, 3, 2, 14 * 14).permute(0, 3, 2, 1, 4).reshape(6, 3, -1)
        assert torch.equal(values[5], values[4])  # the last frame fills the last pair
    else:
        assert values.shape == (1, 5, 3, 28, 28)
        values = values[0].flatten(2)
    grey = (values[:5].mean(dim=-1) * torch.tensor(pictures.image_std) + torch.tensor(pictures.image_mean)) * 255
    shown = torch.tensor(np.stack([np.asarray(frame).mean(axis=(0, 1)) for frame in read_frames(media, 5)]))
    assert (grey - shown).abs().max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_vl"])
def test_real_clips(kind: str, families: Path) -> None:
    model = load_model(family_folder(families, kind), inputs=InputSettings(frames=4))
    files = sorted(file for file in real_data("video_samples").iterdir() if file.suffix in (".mp4", ".mkv", ".avi"))
    for file in files:
        sample = Sample(file.name, (Media("video", file),), "What happens?")
        assert count_tokens(sample, model) == encode(sample, model).length > 20
    assert len(files) >= 5 and generate([sample], model, max_new_tokens=2)


def test_features_of_speech_are_those_of_a_plain_fourier_transform() -> None:
    """Granite Speech: 25 ms windows every 10 ms, 80 mels, decades; written out in numpy."""
    sound_ = np.sin(np.arange(4000) ** 1.4 / 200).astype(np.float32) + 0.1
    padded = np.pad(sound_, 256, mode="reflect")
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[start : start + 512] * window for start in range(0, 4001, 160)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 82) / 2595) - 1)
    places = np.linspace(0, 8000, 257)
    rising = (places[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - places[:, None]) / (corners[2:] - corners[1:-1])
    decades = np.log10(np.maximum(power @ np.maximum(0, np.minimum(rising, falling)), 1e-10))
    decades = np.maximum(decades, decades.max() - 8) / 4 + 1
    expected = decades[:26].reshape(-1, 160)
    found = SpeechFeatures()([sound_])
    assert found["input_features"].shape == (1, 13, 160)
    assert np.abs(found["input_features"][0].numpy() - expected).max() < 1e-4
    assert found["audio_embed_sizes"] == [3] and found["input_features_mask"].all()


def test_the_page_says_what_the_table_says() -> None:
    repository = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("models_page", repository / "tools" / "docs" / "models_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (repository / "docs" / "models.md").read_text(encoding="utf-8")
    assert written == module.models_page(), "run `python tools/docs/models_page.py` and commit the result"
