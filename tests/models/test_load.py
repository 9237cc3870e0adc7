"""Opening: the same numbers again, exact weights, and everything damaged or unsafe refused by name."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import peft
import pytest
import torch
from fixtures.canary import Canary
from safetensors.torch import load_file, save_file

from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.sample import Sample
from mllm_tailor.models import InputSettings, LoadedModel, encode, generate, load_model, prompt_inputs, save_model
from mllm_tailor.models.resolve import find_checkpoint
from mllm_tailor.recipe.schema import Tiles


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def sample() -> Sample:
    from fixtures.images import picture

    return Sample("a", media=(picture(60, 120),), prompt="Total?", answer="9.00")


def logits(model: LoadedModel, sample: Sample) -> torch.Tensor:
    with torch.no_grad():
        return model.model(**prompt_inputs([sample], model)).logits


@pytest.mark.slow
def test_saved_and_opened_again_is_the_same_model(tiny_model_folder: Path, sample: Sample, tmp_path: Path) -> None:
    model = load_model(
        tiny_model_folder, inputs=InputSettings(tiles=Tiles(min=1, max=2, thumbnail=False), system="Be brief.")
    )
    save_model(model, tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert (again.tiles, again.system) == (model.tiles, model.system)
    assert torch.equal(encode(sample, again).ids, encode(sample, model).ids)
    assert (logits(again, sample) - logits(model, sample)).abs().max() == 0.0
    assert again.identity["weights_sha256"] == model.identity["weights_sha256"]


def test_identity_follows_the_weights(folder: Path) -> None:
    before = load_model(folder).identity
    weights = load_file(folder / "model.safetensors")
    weights[_named(weights, "lm_head.weight")][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    after = load_model(folder).identity
    assert before["weights_sha256"] != after["weights_sha256"]
    assert before["config_sha256"] == after["config_sha256"]


def test_parts_and_their_linear_layers(tiny_model_folder: Path) -> None:
    family = load_model(tiny_model_folder).family
    assert family.name == "internvl" and set(family.parts) == {"vision", "projector", "language", "head"}
    assert set(family.linear_names["vision"]) == {"q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2"}
    assert set(family.linear_names["projector"]) == {"linear_1", "linear_2"}
    assert family.linear_names["head"] == ("lm_head",)
    assert len(family.linear_names["language"]) == 7


def test_every_weight_belongs_to_one_part(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder)
    prefixes = [prefix for group in model.family.parts.values() for prefix in group]
    for name, _ in model.model.named_parameters():
        assert sum(name.startswith(prefix + ".") for prefix in prefixes) == 1, name


def test_number_formats(tiny_model_folder: Path) -> None:
    assert load_model(tiny_model_folder).model.dtype == torch.float32  # auto keeps small models exact
    model = load_model(tiny_model_folder, dtype="bfloat16")
    assert model.model.dtype == model.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("number", ["float32", torch.float32, "torch.float32", torch.float16, "float16"])
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_every_way_to_name_numbers_folders_and_devices(
    number: str | torch.dtype, device: str | torch.device | None, tiny_model_folder: Path
) -> None:
    for path in (tiny_model_folder, str(tiny_model_folder)):
        model = load_model(path, dtype=number, device=device)
        assert str(model.model.dtype) == f"torch.{str(number).removeprefix('torch.')}"


def test_numbers_that_are_not_known(tiny_model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"dtype 'float23' — .*float32"):
        load_model(tiny_model_folder, dtype="float23")


@pytest.mark.slow
def test_a_sample_on_its_own(tiny_model_folder: Path, sample: Sample) -> None:
    model = load_model(tiny_model_folder)
    assert generate(sample, model, max_new_tokens=3) == generate([sample], model, max_new_tokens=3)
    encoded = encode(sample, model)
    assert encoded.pixel_values is encoded.media["pixel_values"]
    assert encode(Sample("b", prompt="?"), model).pixel_values is None


@pytest.mark.slow
def test_nf4_packs_what_it_should_and_survives_evaluation(tiny_model_folder: Path, sample: Sample) -> None:
    from bitsandbytes.nn import Linear4bit

    model = load_model(tiny_model_folder, quantize="nf4", quantize_skip=("vision", "linear_2"))
    packed = {name for name, module in model.model.named_modules() if isinstance(module, Linear4bit)}
    assert {name.split(".")[1] for name in packed} == {"language_model", "multi_modal_projector"}
    assert "model.multi_modal_projector.linear_2" not in packed and "lm_head" not in packed
    assert len(packed) == 2 * 7 + 1
    layer = model.model.model.language_model.layers[0].self_attn.q_proj
    assert layer.weight.quant_state.nested  # double quantisation: the scales are quantised too
    before = logits(model, sample)
    packed_before = layer.weight.data.clone()
    generate([sample], model, max_new_tokens=2)
    assert torch.equal(layer.weight.data, packed_before) and layer.weight.quant_state.nested
    assert torch.equal(logits(model, sample), before)
    exact = logits(load_model(tiny_model_folder), sample)
    assert 1e-4 < (before - exact).abs().max() / exact.abs().max() < 0.5  # coarser, and still the same model


def test_int8(tiny_model_folder: Path) -> None:
    from bitsandbytes.nn import Linear8bitLt

    model = load_model(tiny_model_folder, quantize="int8", quantize_skip=("vision",))
    packed = [name for name, module in model.model.named_modules() if isinstance(module, Linear8bitLt)]
    assert len(packed) == 2 * 7 + 2


def test_an_unmerged_model_is_not_saved_as_a_plain_one(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="merge it first"):
        save_model(load_model(tiny_model_folder, quantize="nf4"), tmp_path / "x")


# What is damaged


def test_a_missing_folder_and_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)


def test_an_unknown_kind_of_model(folder: Path) -> None:
    change_json(folder / "config.json", model_type="internvll")
    with pytest.raises(ModelError, match="did you mean `internvl`"):
        load_model(folder)


@pytest.mark.parametrize(("kind", "advice"), [("phi4mm", "refs/pr/70"), ("phi3_v", "refs/pr/70"), ("cogvlm2", "GLM")])
def test_layouts_that_need_their_own_code_say_what_to_take(kind: str, advice: str, folder: Path) -> None:
    change_json(folder / "config.json", model_type=kind)
    with pytest.raises(ModelError, match=advice):
        load_model(folder)


@pytest.mark.parametrize("keep", [4, 5000, -1])
def test_weights_cut_off(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors: .*(damaged|truncated).*download it again"):
        load_model(folder)


def test_weights_that_are_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04 this is a zip" * 100)
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_model(folder)


def test_a_shard_that_is_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = dict.fromkeys(weights, "model-00001-of-00002.safetensors")
    names[_named(weights, "lm_head.weight")] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: this shard is missing"):
        load_model(folder)


def test_an_index_that_leads_out_of_the_folder(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    with pytest.raises(ModelError, match="shard is missing"):
        load_model(folder)


def test_a_weight_that_is_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[_named(weights, "layers.1.mlp.up_proj.weight")]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, the first is model\.language_model\.layers\.1\.mlp"):
        load_model(folder)


def test_a_weight_of_the_wrong_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[_named(weights, "linear_1.weight")] = torch.zeros(8, 8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="do not fit"):
        load_model(folder)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    change_json(folder / "config.json", image_token_id=7)
    with pytest.raises(ModelError, match=r"image token 261 in the tokenizer, 7 in config\.json"):
        load_model(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json", "config.json"])
def test_files_that_are_not_json(folder: Path, name: str) -> None:
    (folder / name).write_text('{"half": ')
    with pytest.raises(ModelError):
        load_model(folder)


def test_a_tokenizer_without_picture_tokens(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", context_image_token=None)
    with pytest.raises(ModelError, match="has no image tokens"):
        load_model(folder)


def test_a_missing_chat_template(folder: Path, sample: Sample) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        encode(sample, load_model(folder))


# What is unsafe


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    for name in ("pytorch_model.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Canary(sign)))
    load_model(folder)  # safetensors lie beside them and are used
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled weights can run code and are never read"):
        load_model(folder)
    assert not sign.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert sign.exists()  # the canary does sing


def test_code_of_a_checkpoint_is_never_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sign = tmp_path / "sign"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in ("configuration_own", "modeling_own", "tokenization_own", "processing_own"):
        (folder / f"{name}.py").write_text(f"open({str(sign)!r}, 'w').write('code was run')\nclass Own: pass\n")
    change_json(
        folder / "config.json",
        auto_map={"AutoConfig": "configuration_own.Own", "AutoModelForMultimodalLM": "modeling_own.Own"},
        trust_remote_code=True,
        _attn_implementation="someone/kernel",
        attn_implementation="someone/kernel",
    )
    change_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_own.Own", None]},
        trust_remote_code=True,
    )
    for name in ("processor_config.json", "preprocessor_config.json"):
        change_json(
            folder / name, auto_map={"AutoProcessor": "processing_own.Own", "AutoImageProcessor": "processing_own.Own"}
        )
    assert generate([Sample("a", prompt="?")], load_model(folder), max_new_tokens=2)
    assert not sign.exists()
    assert "auto_map" in caplog.text


def test_a_template_cannot_reach_python(folder: Path, sample: Sample, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch %s') }}"
    (folder / "chat_template.jinja").write_text(escape % sign)
    with pytest.raises(ModelError, match="template"):
        encode(sample, load_model(folder))
    assert not sign.exists()


# The hub


@pytest.fixture
def hub(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local hub cache holding `owner/tiny` at one commit, with the network switched off."""
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_model_folder, snapshot)
    (tmp_path / "models--owner--tiny" / "refs").mkdir()
    (tmp_path / "models--owner--tiny" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_hub_id_opens_from_the_cache_and_is_pinned(hub: Path) -> None:
    model = load_model("owner/tiny")
    assert model.identity["revision"] == "a" * 40
    assert load_model("owner/tiny", revision="a" * 40).identity == model.identity


def test_a_hub_id_that_is_not_there(hub: Path) -> None:
    with pytest.raises(ModelError, match="not in the local cache"):
        load_model("owner/other")
    with pytest.raises(ModelError, match="not in the local cache"):
        load_model("owner/tiny", revision="b" * 40)


def test_shapes_are_read_without_loading(tiny_model_folder: Path) -> None:
    checkpoint = find_checkpoint(tiny_model_folder)
    weights = load_file(tiny_model_folder / "model.safetensors")
    assert checkpoint.shapes == {name: tuple(weight.shape) for name, weight in weights.items()}
    assert checkpoint.parameters == sum(weight.numel() for weight in weights.values())


def change_json(path: Path, **values: object) -> None:
    stated = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(stated | values))


def _named(weights: dict[str, torch.Tensor], end: str) -> str:
    (name,) = [name for name in weights if name.endswith(end)]
    return name


def _stored(folder: Path, **change: object) -> bytes:
    """The weights with one entry of their header changed."""
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    text = json.dumps(header | {first: header[first] | change}).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _config(folder: Path, **change: object) -> bytes:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= change
    return json.dumps(config).encode()


def _whole_config(folder: Path, **change: Any) -> bytes:
    return json.dumps(json.loads((folder / "config.json").read_text()) | change).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"[1]"),
        ("config.json", b"null"),
        ("config.json", lambda folder: _config(folder, num_attention_heads="x")),
        ("config.json", lambda folder: _config(folder, num_attention_heads=0)),
        ("config.json", lambda folder: _config(folder, num_hidden_layers=10**9)),
        ("config.json", lambda folder: _config(folder, vocab_size=10**9)),
        ("config.json", lambda folder: _config(folder, hidden_size=-1)),
        ("config.json", lambda folder: _whole_config(folder, vision_feature_layer=2**70)),
        ("config.json", lambda folder: _whole_config(folder, vision_feature_layer=[9])),
        ("generation_config.json", b'{"eos_token_id": [{"a": 1}]}'),
        ("model.safetensors", lambda folder: _stored(folder, shape=None)),
        ("model.safetensors", lambda folder: _stored(folder, shape=[-1, 4])),
        ("model.safetensors", lambda folder: _stored(folder, dtype="Q99")),
        ("model.safetensors", lambda folder: _stored(folder, data_offsets=[0])),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 5}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "model.safetensors", "b": 5}}'),
        ("model.safetensors.index.json", b"[]"),
        ("tokenizer.json", b"null"),
        ("tokenizer.json", b"{"),
        ("tokenizer_config.json", b"[1]"),
        ("processor_config.json", b"[1]"),
        ("processor_config.json", b'{"image_seq_length": "x"}'),
        ("chat_template.jinja", b"{{ 1/0 }}"),
        ("chat_template.jinja", b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        ("chat_template.jinja", b"{% for i in range(10**9) %}{% endfor %}"),
        ("chat_template.jinja", b"{{ messages[99].content.x }}"),
    ],
)
def test_odd_files_end_in_a_message(folder: Path, sample: Sample, file: str, content: Any) -> None:
    """Each is named in a ModelError, and nothing is allocated for sizes that the files do not hold."""
    (folder / file).write_bytes(content if isinstance(content, bytes) else content(folder))
    with pytest.raises(ModelError, match=re.escape(file) if "tokenizer" not in file else "tokenizer"):
        encode(sample, load_model(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "config.json", "merges.txt"])
def test_a_document_without_end_is_refused_before_it_is_read(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(12 * 2**30)
    with pytest.raises(ModelError, match=rf"{name}: 12,884,901,888 bytes, over the limit"):
        load_model(folder)


@pytest.mark.slow
def test_an_adapter_beside_the_weights_is_named_and_not_applied(
    folder: Path, sample: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load_model(folder)
    prompts = prompt_inputs([sample], plain)
    wanted = plain.model(**prompts).logits
    network = peft.get_peft_model(
        load_model(folder).model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    network.save_pretrained(folder)
    beside = load_model(folder)
    assert torch.equal(beside.model(**prompts).logits, wanted) and beside.identity == plain.identity
    assert "adapter_config.json" in caplog.text
    network.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="an adapter, not a model"):
        load_model(tmp_path / "adapter")
