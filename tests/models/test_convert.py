"""Original InternVL checkpoints, native: the same numbers as the reference computes from the original weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import reference_internvl as reference
from fixtures.families import clip
from fixtures.images import picture
from fixtures.original_checkpoint import SAMPLE
from fixtures.original_internvl import TEMPLATES, language_config, random_weights, vision_config, write_checkpoint
from safetensors.torch import load_file, save_file

from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.sample import Media, Sample, Turn
from mllm_tailor.models import NO_LOSS, InputSettings, LoadedModel, encode, load_model, save_model
from mllm_tailor.models.convert import convert
from mllm_tailor.models.convert.config import language_class
from mllm_tailor.recipe.schema import Tiles

BAR = 1e-4  # fp32; a wrong turn anywhere costs 0.1 and more

CASES: dict[str, dict[str, Any]] = {
    "InternLM2, the seed's": {"language": "InternLM2ForCausalLM"},
    "InternLM2 with biases": {"language": "InternLM2ForCausalLM", "llm": {"bias": True}},
    "InternLM2, pixel shuffle 1": {"language": "InternLM2ForCausalLM", "ps_version": "v1"},
    "InternLM2, silent on pixel shuffle": {"language": "InternLM2ForCausalLM", "ps_version": None},
    "InternLM2 past its trained length": {"language": "InternLM2ForCausalLM", "llm": {"max_position_embeddings": 100}},
    "InternLM2, linear scaling": {
        "language": "InternLM2ForCausalLM",
        "llm": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    },
    "InternLM2, last layer but one": {"language": "InternLM2ForCausalLM", "select_layer": -2},
    "InternLM2, last layer but three": {
        "language": "InternLM2ForCausalLM",
        "select_layer": -4,
        "vision": vision_config("6b", num_hidden_layers=5),
    },
    "InternLM2, a layer from the front": {"language": "InternLM2ForCausalLM", "select_layer": 1},
    "InternLM2, positions drawn together": {
        "language": "InternLM2ForCausalLM",
        "vision": vision_config(image_size=28),
    },
    "InternLM2, stretched positions": {
        "language": "InternLM2ForCausalLM",
        "vision": vision_config(image_size=112),
    },
    "InternLM2 and a 6B tower": {"language": "InternLM2ForCausalLM", "vision": vision_config("6b")},
    "InternLM2 without grouped queries, a 6B tower of coarser norms": {
        "language": "InternLM2ForCausalLM",
        "vision": vision_config("6b", layer_norm_eps=1e-2),
        "llm": {"num_key_value_heads": 4},
    },
    "Qwen2": {"language": "Qwen2ForCausalLM"},
    "Qwen2, template of 2.5": {"language": "Qwen2ForCausalLM", "template": "internvl2_5"},
    "Qwen2, dynamic scaling": {
        "language": "Qwen2ForCausalLM",
        "llm": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 100},
    },
    "Llama": {"language": "LlamaForCausalLM"},
    "Llama with biases, pixel shuffle 1": {
        "language": "LlamaForCausalLM",
        "llm": {"attention_bias": True},
        "ps_version": "v1",
    },
    "Phi3, short factors": {"language": "Phi3ForCausalLM"},
    "Phi3, long factors": {"language": "Phi3ForCausalLM", "llm": {"original_max_position_embeddings": 32}},
    "Phi3, long factors of another strength": {
        "language": "Phi3ForCausalLM",
        "llm": {
            "rope_scaling": {"type": "yarn", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0]},
            "original_max_position_embeddings": 32,
        },
    },
    "Phi3 and a 6B tower": {"language": "Phi3ForCausalLM", "vision": vision_config("6b"), "seed": 3},
}


def image_inputs(model: LoadedModel) -> tuple[Any, dict[str, torch.Tensor]]:
    encoded = encode(SAMPLE, model)
    return encoded, {"input_ids": encoded.ids[None], **encoded.media}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_features_logits_loss_and_replies_are_those_of_the_reference(case: dict[str, Any], tmp_path: Path) -> None:
    config, weights = write_checkpoint(tmp_path / "original", **case)
    model = load_model(tmp_path / "original", dtype="float32", device="cpu")
    encoded, inputs = image_inputs(model)
    pixels, picture_id = encoded.media["pixel_values"], model.processor.image_token_id
    expected = reference.logits(encoded.ids.tolist(), pixels, weights, config, picture_id)
    with torch.no_grad():
        features = model.model.get_image_features(pixel_values=pixels).pooler_output
        output = model.model(**inputs, labels=encoded.labels[None])
    assert (features - reference.image_features(pixels, weights, config)).abs().max() < BAR
    assert (output.logits[0] - expected).abs().max() < BAR
    loss = torch.nn.functional.cross_entropy(expected[:-1], encoded.labels[1:], ignore_index=NO_LOSS)
    assert abs(output.loss - loss) < BAR
    prompt = encoded.ids[: encoded.answer_start]
    model.model.generation_config.eos_token_id = None
    # Past the trained length the angles of all tokens change with every new one, which cached keys cannot follow.
    cached = len(prompt) + 6 < config["llm_config"]["max_position_embeddings"]
    said = model.model.generate(
        input_ids=prompt[None], pixel_values=pixels, do_sample=False, max_new_tokens=6, use_cache=cached
    )
    likeliest = reference.greedy(prompt.tolist(), pixels, weights, config, picture_id, 6)
    assert said[0, len(prompt) :].tolist() == likeliest


def test_the_reference_tells_settings_apart(tmp_path: Path) -> None:
    """A reference that ignored a setting would pass everything; each of these must move the logits by far."""
    base = {"vision_config": vision_config(), "llm_config": language_config("InternLM2ForCausalLM", 450)}
    base |= {"select_layer": -1, "ps_version": "v2"}
    weights = random_weights(base)
    pixels, ids = torch.randn(1, 3, 56, 56), [5, *[9] * 4, *range(10, 90)]
    plain = reference.logits(ids, pixels, weights, base, 9)
    language = base["llm_config"]
    others = [
        base | {"ps_version": "v1"},
        base | {"select_layer": -2},
        base | {"llm_config": language | {"max_position_embeddings": 64}},
        base | {"llm_config": language | {"rope_scaling": {"type": "linear", "factor": 2.0}}},
        base | {"llm_config": language | {"rms_norm_eps": 0.1}},
    ]
    for other in others:
        assert (reference.logits(ids, pixels, weights, other, 9) - plain).abs().max() > 0.1


@pytest.mark.slow
def test_adapters_left_in_a_checkpoint_are_merged(tmp_path: Path) -> None:
    config, weights = write_checkpoint(tmp_path / "original", use_llm_lora=4, use_backbone_lora=4)
    tuned, wrapped = dict(weights), {}
    generator = torch.Generator().manual_seed(9)
    for name, weight in weights.items():
        part, _, rest = name.partition(".")
        if part in ("language_model", "vision_model"):
            wrapped_name = f"{part}.base_model.model.{rest}"
            if rest.endswith(("wqkv.weight", "w2.weight", "attn.qkv.weight", "fc1.weight")):
                stem = wrapped_name.removesuffix(".weight")
                down = torch.randn(4, weight.shape[1], generator=generator) / 10
                up = torch.randn(weight.shape[0], 4, generator=generator) / 10
                wrapped |= {f"{stem}.base_layer.weight": weight}
                wrapped |= {f"{stem}.lora_A.default.weight": down, f"{stem}.lora_B.default.weight": up}
                plain = name.removesuffix(".weight")
                tuned |= {f"{plain}.lora_A.default.weight": down, f"{plain}.lora_B.default.weight": up}
            elif rest.endswith(("attn.qkv.bias", "fc1.bias")):
                wrapped[wrapped_name.removesuffix(".bias") + ".base_layer.bias"] = weight
            else:
                wrapped[wrapped_name] = weight
        else:
            wrapped[name] = weight
    save_file(wrapped, tmp_path / "original" / "model.safetensors", metadata={"format": "pt"})
    model = load_model(tmp_path / "original", dtype="float32")
    encoded, inputs = image_inputs(model)
    arguments = (encoded.ids.tolist(), encoded.media["pixel_values"])
    expected = reference.logits(*arguments, tuned, config, model.processor.image_token_id)
    with torch.no_grad():
        got = model.model(**inputs).logits[0]
    assert (got - expected).abs().max() < BAR
    assert (expected - reference.logits(*arguments, weights, config, model.processor.image_token_id)).abs().max() > 0.1
    lost = {
        name: weight for name, weight in wrapped.items() if not name.endswith("0.attention.wqkv.lora_B.default.weight")
    }
    save_file(lost, tmp_path / "original" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="has no partner"):
        load_model(tmp_path / "original")


@pytest.mark.slow
def test_shards_in_and_shards_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write_checkpoint(whole)
    _, weights = write_checkpoint(parts)
    (parts / "model.safetensors").unlink()
    names = sorted(weights)
    places = {name: f"model-0000{1 + number % 3}-of-00003.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file(
            {name: weights[name] for name in names if places[name] == file}, parts / file, metadata={"format": "pt"}
        )
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    convert(whole, tmp_path / "one")
    monkeypatch.setattr("mllm_tailor.models.convert.stream.SHARD", 50_000)
    convert(parts, tmp_path / "many")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3 and (tmp_path / "one" / "model.safetensors").exists()
    largest = max(weight.nbytes for weight in weights.values())
    assert (
        max(file.stat().st_size for file in files) < 50_000 + largest + 8_000
    )  # one weight and a header over the limit
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    one = load_file(tmp_path / "one" / "model.safetensors")
    many = {name: weight for file in files for name, weight in load_file(file).items()}
    assert set(one) == set(many) == set(index["weight_map"])
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in one.values())
    (parts / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors: this shard is missing"):
        convert(parts, tmp_path / "again")


@pytest.mark.slow
def test_opened_from_the_original_once_converted_then_from_the_copy(tmp_path: Path, cache: Path) -> None:
    write_checkpoint(tmp_path / "mini")
    first = load_model(tmp_path / "mini")
    copies = list((cache / "native").iterdir())
    stamps = [copy.stat().st_mtime_ns for copy in copies]
    again = load_model(tmp_path / "mini")
    assert [copy.stat().st_mtime_ns for copy in (cache / "native").iterdir()] == stamps
    assert first.identity == again.identity and first.identity["path"] == str(tmp_path / "mini")
    (tmp_path / "mini" / "conversation.py").write_text("")  # whatever a copy was made from counts
    load_model(tmp_path / "mini")
    assert len(list((cache / "native").iterdir())) == 2
    write_checkpoint(tmp_path / "mini", seed=1)
    assert load_model(tmp_path / "mini").identity["weights_sha256"] != first.identity["weights_sha256"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "mini")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be written .* TAILOR_CACHE"):
        load_model(tmp_path / "mini")


@pytest.mark.slow
def test_a_converted_folder_is_an_ordinary_one(tmp_path: Path) -> None:
    from transformers import AutoModelForMultimodalLM

    write_checkpoint(tmp_path / "original", torch_dtype="bfloat16")
    assert convert(tmp_path / "original", tmp_path / "native") == tmp_path / "native"
    model = load_model(tmp_path / "native", dtype="float32")
    plain = AutoModelForMultimodalLM.from_pretrained(tmp_path / "native", dtype=torch.float32)
    _, inputs = image_inputs(model)
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, model.model(**inputs).logits)
    assert not plain.config.tie_word_embeddings
    save_model(model, tmp_path / "saved")
    saved = load_model(tmp_path / "saved", dtype="float32")
    with torch.no_grad():
        assert torch.equal(saved.model(**inputs).logits, model.model(**inputs).logits)
    assert torch.equal(encode(SAMPLE, saved).ids, encode(SAMPLE, model).ids)
    assert saved.processor.frame_text == "Frame-{}: "  # as it was trained with clips


@pytest.mark.slow
def test_folders_say_what_other_programs_look_for(tmp_path: Path) -> None:
    """llama.cpp's converter finds the parts by these names, and leaves out weights under any others without a word."""
    write_checkpoint(tmp_path / "two", max_dynamic_patch=4)
    write_checkpoint(tmp_path / "one", ps_version="v1")
    convert(tmp_path / "two", tmp_path / "native")
    model = load_model(tmp_path / "native", inputs=InputSettings(tiles=Tiles(min=2, max=3)))
    save_model(model, tmp_path / "saved")
    for folder, tiles in (("native", (1, 4)), ("saved", (2, 3))):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["vision_config"]["architectures"] == ["InternVisionModel"]
        assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
        assert (config["min_dynamic_patch"], config["max_dynamic_patch"]) == tiles
        names = load_file(tmp_path / folder / "model.safetensors")
        parts = {".".join(name.split(".")[:2]) for name in names}
        assert parts == {"model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head.weight"}
    first = json.loads((convert(tmp_path / "one", tmp_path / "first") / "config.json").read_text())
    assert "architectures" not in first["vision_config"]  # such programs compute the second pixel shuffle alone


@pytest.mark.slow
def test_version_one_survives_saving(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "original", ps_version="v1")
    model = load_model(tmp_path / "original")
    save_model(model, tmp_path / "saved")
    _, inputs = image_inputs(model)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "saved").model(**inputs).logits, model.model(**inputs).logits)


@pytest.mark.slow
def test_tied_heads_stored_once(tmp_path: Path) -> None:
    config, weights = write_checkpoint(tmp_path / "original", "Qwen2ForCausalLM")
    weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"]
    stored = {name: weight for name, weight in weights.items() if name != "language_model.lm_head.weight"}
    save_file(stored, tmp_path / "original" / "model.safetensors", metadata={"format": "pt"})
    model = load_model(tmp_path / "original")
    encoded, inputs = image_inputs(model)
    pixels, picture_id = encoded.media["pixel_values"], model.processor.image_token_id
    expected = reference.logits(encoded.ids.tolist(), pixels, weights, config, picture_id)
    with torch.no_grad():
        assert (model.model(**inputs).logits[0] - expected).abs().max() < BAR


EXPECTED = {
    "internlm2-chat": "<s><|im_start|>system\nS<|im_end|><|im_start|>user\n{picture}Q<|im_end|><|im_start|>assistant\n"
    "A<|im_end|><|im_start|>user\nR<|im_end|><|im_start|>assistant\nB<|im_end|>",
    "internvl2_5": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{picture}Q<|im_end|>\n<|im_start|>assistant\n"
    "A<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n",
    "Hermes-2": "<|im_start|>system\nS<|im_end|><|im_start|>user\n{picture}Q<|im_end|><|im_start|>assistant\n"
    "A<|im_end|><|im_start|>user\nR<|im_end|><|im_start|>assistant\nB<|im_end|>",
    # Its turn tokens take the white space behind them along.
    "phi3-chat": "<s> <|system|>S<|end|><|user|>{picture}Q<|end|><|assistant|>A<|end|>"
    "<|user|>R<|end|><|assistant|>B<|end|>",
}


@pytest.mark.slow
@pytest.mark.parametrize("style", EXPECTED)
def test_conversations_are_written_as_the_original_writes_them(style: str, tmp_path: Path) -> None:
    languages = {"internlm2-chat": "InternLM2ForCausalLM", "phi3-chat": "Phi3ForCausalLM"}
    write_checkpoint(
        tmp_path / "original", languages.get(style, "Qwen2ForCausalLM"), template=style, system_message="S"
    )
    model = load_model(tmp_path / "original", inputs=InputSettings(tiles=Tiles(min=1, max=1)))
    history = (Turn("user", "Q"), Turn("assistant", "A"))
    encoded = encode(Sample("a", media=SAMPLE.media, history=history, prompt="R", answer="B"), model)
    picture_text = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>\n"
    assert model.tokenizer.decode(encoded.ids) == EXPECTED[style].replace("{picture}", picture_text)
    supervised = model.tokenizer.decode(encoded.labels[encoded.labels != NO_LOSS])
    assert supervised == ("B<|end|>" if style == "phi3-chat" else "B<|im_end|>")


@pytest.mark.slow
def test_several_pictures_no_picture_and_a_clip(tmp_path: Path) -> None:
    """Pictures stand in order before the question and share the tiles; every frame of a clip is one tile."""
    write_checkpoint(tmp_path / "original", "Qwen2ForCausalLM", system_message="S", max_dynamic_patch=6)
    model = load_model(tmp_path / "original", inputs=InputSettings(frames=2))

    def read(*media: Media) -> tuple[str, int]:
        encoded = encode(Sample("a", media, "Q", "A"), model)
        tiles = 0 if encoded.pixel_values is None else len(encoded.pixel_values)
        assert (encoded.ids == model.processor.image_token_id).sum() == 4 * tiles
        supervised = encoded.labels[encoded.labels != NO_LOSS]
        assert model.tokenizer.decode(supervised) == "A<|im_end|>"
        return model.tokenizer.decode(encoded.ids).replace("<IMG_CONTEXT>", ""), tiles

    head, tail = "<|im_start|>system\nS<|im_end|><|im_start|>user\n", "Q<|im_end|><|im_start|>assistant\nA<|im_end|>"
    assert read() == (head + tail, 0)
    assert read(picture(60, 120)) == (f"{head}<img></img>\n{tail}", 3)  # two tiles and a thumbnail
    both = read(picture(60, 60), picture(60, 400))  # of six tiles three each: 1, and 3 with a thumbnail
    assert both == (f"{head}<img></img>\n<img></img>\n{tail}", 1 + 4)
    frames = read(clip(tmp_path / "a.mp4"))
    assert frames == (f"{head}Frame-1: <img></img>\nFrame-2: <img></img>\n{tail}", 2)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["InternLM2ForCausalLM", "Phi3ForCausalLM"])
def test_in_bf16_it_is_the_same_model_less_exactly(language: str, tmp_path: Path) -> None:
    config, weights = write_checkpoint(tmp_path / "original", language, torch_dtype="bfloat16")
    model = load_model(tmp_path / "original", dtype=torch.bfloat16)
    encoded, inputs = image_inputs(model)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    rounded = {name: weight.bfloat16().float() for name, weight in weights.items()}
    expected = reference.logits(
        encoded.ids.tolist(), encoded.media["pixel_values"], rounded, config, model.processor.image_token_id
    )
    with torch.no_grad():
        got = model.model(**inputs).logits[0].float()
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.slow
def test_system_text_of_the_checkpoint(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    write_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "conversation.py").write_text(
        f"open({str(sign)!r}, 'w').write('run')\n"
        "register_conv_template(Conversation(name='Hermes-2', system_message='Answer the questions.', sep='x'))\n"
        "register_conv_template(Conversation(name='internlm2-chat', roles=('a', 'b'),\n"
        "    system_message='You are an AI assistant whose name is InternLM (书生·浦语).'))\n"
    )
    for folder, options, expected in (
        ("a", {}, "You are an AI assistant whose name is InternLM (书生·浦语)."),
        ("a", {"system": "Mine."}, "Mine."),
        ("b", {"system_message": "Stated."}, "Stated."),
        ("c", {}, "英文名叫InternVL"),
    ):
        if folder != "a":
            write_checkpoint(tmp_path / folder, **options)
        model = load_model(tmp_path / folder, inputs=InputSettings(**options) if folder == "a" else None)
        assert expected in model.tokenizer.decode(encode(Sample("x", prompt="?"), model).ids)
    assert not sign.exists()


@pytest.mark.slow
def test_tiles_of_the_checkpoint(tmp_path: Path) -> None:
    for number, (settings, expected) in enumerate(
        [
            ({"max_dynamic_patch": 12, "min_dynamic_patch": 2}, Tiles(min=2, max=12, thumbnail=True)),
            ({"use_thumbnail": False}, Tiles(min=1, max=6, thumbnail=False)),
            ({"max_dynamic_patch": None, "min_dynamic_patch": None}, Tiles(min=1, max=6, thumbnail=True)),
            ({"dynamic_image_size": False}, Tiles(min=1, max=1, thumbnail=False)),
        ]
    ):
        write_checkpoint(tmp_path / str(number), **settings)
        assert load_model(tmp_path / str(number)).tiles == expected


def test_every_language_model_has_a_case() -> None:
    assert {case["language"] for case in CASES.values()} == set(TEMPLATES)


@pytest.mark.parametrize("language", TEMPLATES)
def test_language_models_told_by_their_kind_alone(language: str) -> None:
    kind = language.removesuffix("ForCausalLM").lower()
    assert language_class({"llm_config": {"model_type": kind}}, Path("x")) == language
