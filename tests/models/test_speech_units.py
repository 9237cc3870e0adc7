"""Recordings as words: frames, clusters, one loudness, tokens that any language model learns, a run over them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from fixtures.real_data import real_data
from safetensors.numpy import save_file
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import read_samples
from mllm_tailor.media.audio import audio_rate
from mllm_tailor.models import InputSettings, encode, load_model, save_model
from mllm_tailor.models.inputs.speech_units import (
    FILE,
    Codebook,
    cepstrum,
    fit_codebook,
    kmeans,
    mel_filters,
    nearest,
    slopes,
    token,
)
from mllm_tailor.recipe.schema import Units
from mllm_tailor.run.predict import open_tuned
from mllm_tailor.run.resolve import resolve
from mllm_tailor.run.run_dir import open_run

RATE = 16_000


def say(file: Path, pitches: list[float], loudness: float = 0.3, seconds: float = 0.15) -> Media:
    """A recording of a few tones with a little noise."""
    time = np.arange(int(RATE * seconds)) / RATE
    sound = np.concatenate([np.sin(2 * np.pi * pitch * time) for pitch in pitches])
    noise = np.random.default_rng(len(pitches)).normal(0, 0.01, len(sound))
    soundfile.write(file, (loudness * (sound + noise)).astype(np.float32), RATE, subtype="FLOAT")
    return Media("audio", file)


@pytest.fixture
def tones(tmp_path: Path) -> list[Media]:
    return [say(tmp_path / f"{n}.wav", pitches) for n, pitches in enumerate(([300, 900], [900, 2500], [2500, 300]))]


def test_one_frame_each_20_ms_and_a_shift_of_one_step_shifts_them() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    frames = cepstrum(sound)
    assert frames.shape == (50, 39) and abs(frames.mean(0)).max() < 1e-4
    later = cepstrum(sound[320:])
    plain, moved = frames[4:-3, :13], later[3:-3, :13]
    correlation = np.corrcoef(plain.ravel(), moved.ravel())[0, 1]
    assert correlation > 0.99  # the mean over the recording moves a little
    assert cepstrum(sound[:10]).shape == (1, 39)


def test_clusters_are_found_and_each_point_has_its_nearest() -> None:
    random = np.random.default_rng(1)
    centres = np.array([[0, 0], [9, 0], [0, 9]], np.float32)
    points = (centres[random.integers(3, size=300)] + random.normal(0, 0.3, (300, 2))).astype(np.float32)
    found = kmeans(points, 3, random)
    assert sorted(np.round(found).tolist()) == [[0, 0], [0, 9], [9, 0]]
    apart = ((points[:, None] - found[None]) ** 2).sum(-1)
    assert (nearest(points, found) == apart.argmin(1)).all()
    same = np.ones((5, 2), np.float32)
    assert kmeans(same, 2, random).tolist() == [[1, 1], [1, 1]]


def test_units_are_in_range_no_two_alike_and_the_same_for_a_quiet_voice(tones: list[Media], tmp_path: Path) -> None:
    book = fit_codebook(tones, Units(count=6), seed=0)
    for media in tones:
        units = book.units_of(media)
        assert set(units) <= set(range(6)) and all(one != other for one, other in pairwise(units))
    loud = book.units_of(say(tmp_path / "loud.wav", [300, 900], 0.5))
    assert book.units_of(say(tmp_path / "quiet.wav", [300, 900], 0.005)) == loud
    book.save(tmp_path / FILE)
    again = Codebook.load(tmp_path / FILE)
    assert again.spec == book.spec and again.units_of(tones[0]) == book.units_of(tones[0])
    with pytest.raises(DataError, match=r"lower model\.units\.count"):
        fit_codebook(tones, Units(count=500), seed=0)
    (tmp_path / FILE).write_bytes(b"x")
    with pytest.raises(ModelError, match="no readable codebook"):
        Codebook.load(tmp_path / FILE)


def test_bands_end_where_the_recordings_do(tones: list[Media], tmp_path: Path) -> None:
    sound, _ = soundfile.read(tones[0].path)
    soundfile.write(tmp_path / "narrow.wav", sound[::2], RATE // 2)
    narrow = Media("audio", tmp_path / "narrow.wav")
    assert audio_rate(tones[0]) == RATE and audio_rate(narrow) == RATE // 2
    assert fit_codebook(tones, Units(count=4), seed=0).spec.highest == 7600
    book = fit_codebook([*tones, narrow], Units(count=4), seed=0)
    assert book.spec.highest == 3900
    assert mel_filters(512, 3900)[:, 126:].sum() == 0  # 31.25 Hz apart
    assert fit_codebook(tones, Units(count=4, highest=2000), seed=0).spec.highest == 2000
    book.save(tmp_path / FILE)
    assert Codebook.load(tmp_path / FILE).spec.highest == 3900
    stated = {"units": book.spec.model_dump_json()}
    save_file({"centroids": book.centroids, "mean": book.mean, "scale": book.scale}, tmp_path / FILE, stated)
    with pytest.raises(ModelError, match="earlier version"):
        Codebook.load(tmp_path / FILE)


def test_slopes_are_those_of_the_line_of_least_squares() -> None:
    values = np.random.default_rng(0).normal(size=(9, 2))
    expected = [np.polyfit(range(5), values[place : place + 5], 1)[0] for place in range(5)]
    assert np.allclose(slopes(values)[2:-2], expected)
    assert (slopes(values[:1]) == 0).all()


def test_recordings_stand_as_words_before_the_question(tones: list[Media]) -> None:
    book = fit_codebook(tones, Units(count=6), seed=0)
    picture = Media("image", data=b"x")
    spoken = book.spoken(as_conversation(Sample("a", (picture, tones[0]), "Which?")))
    assert spoken.media == (picture,)
    assert spoken.prompt == "".join(map(token, book.units_of(tones[0]))) + "\nWhich?"


def test_hidden_states_of_a_speech_model_from_a_folder(tones: list[Media], tmp_path: Path) -> None:
    folder = tmp_path / "hubert"
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = HubertConfig(**small, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    book = fit_codebook(tones, Units(features=str(folder), layer=1, count=4), seed=0)
    assert book.centroids.shape == (4, 32) and book.units_of(tones[0])
    with pytest.raises(ModelError, match=r"lower model\.units\.layer"):
        fit_codebook(tones, Units(features=str(folder), layer=6, count=4), seed=0)
    with pytest.raises(ModelError, match="no speech model can be loaded"):
        fit_codebook(tones, Units(features=str(tmp_path), count=4), seed=0)


@pytest.mark.slow
def test_units_are_tokens_of_the_model_the_same_at_every_opening(
    tones: list[Media], tiny_model_folder: Path, tmp_path: Path
) -> None:
    fit_codebook(tones, Units(count=6), seed=0).save(tmp_path / FILE)
    units = Units(count=6, codebook=str(tmp_path / FILE))
    first, second = (load_model(tiny_model_folder, device="cpu", inputs=InputSettings(units=units)) for _ in range(2))
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert first.codebook is not None
    ids = encode(Sample("a", (tones[0],), "Which?"), first).ids.tolist()
    wanted = [first.tokenizer.convert_tokens_to_ids(token(unit)) for unit in first.codebook.units_of(tones[0])]
    start = ids.index(wanted[0])
    assert ids[start : start + len(wanted)] == wanted
    save_model(first, tmp_path / "saved")  # with its codebook beside the weights
    saved = load_model(tmp_path / "saved", device="cpu", inputs=InputSettings(units=Units(count=6)))
    assert encode(Sample("a", (tones[0],), "Which?"), saved).ids.tolist() == ids
    assert torch.equal(saved.model.get_input_embeddings().weight, first.model.get_input_embeddings().weight)
    with pytest.raises(ModelError, match="no codebook"):
        load_model(tiny_model_folder, device="cpu", inputs=InputSettings(units=Units()))


@pytest.mark.slow
def test_a_run_learns_from_units_and_its_folder_predicts_wherever_it_lies(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for number in range(12):
        say(data / f"{number}.wav", [300, 900] if number % 2 else [2500, 300], 0.1 + 0.02 * number)
        speaker = f"speaker {number // 4}"
        rows.append({"audio": f"{number}.wav", "text": ("low", "high")[number % 2], "speaker": speaker})
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "words",
        "model": {"path": str(tiny_model_folder), "units": {"count": 5}},
        "data": {"train": str(data), "held_out": {"fraction": 0.34, "group_by": "speaker"}, "dev": 0.2},
        "task": "transcribe",
        "method": {"name": "full", "parts": ["language", "head"]},
        "train": {"epochs": 1, "batch_size": 4},
        "predict": {"max_new_tokens": 8},
        "score": ["word_errors", "accuracy"],
        "score_by": ["speaker"],
        "output": str(tmp_path / "runs"),
    }
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(values))
    run = run_recipe(tmp_path / "words.yaml", [], exclude_faulty=False, fresh=False)
    scores = read_json(run.scores)
    assert scores["metrics"][0] == "word_errors" and len(scores["by"]["speaker"]) == 1
    assert run.codebook.is_file() and "Word errors by speaker" in run.report.read_text()
    moved = tmp_path / "elsewhere"
    run.path.rename(moved)
    recipe = open_run(moved).recipe()
    assert open_tuned(resolve(recipe), moved / "adapter").codebook is not None


@pytest.mark.slow
def test_real_digits_of_all_speakers_become_few_units() -> None:
    samples = read_samples(real_data("fsdd")).samples[::60]
    media = [sample.media[0] for sample in samples]
    book = fit_codebook(media, Units(count=32), seed=0)
    for one in media:
        units = book.units_of(one)
        assert 3 <= len(units) <= 120
