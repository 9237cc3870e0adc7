"""Original checkpoints that cannot be opened say why, and nothing in them is run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from fixtures.canary import Canary
from fixtures.original_checkpoint import SAMPLE
from fixtures.original_internvl import write_checkpoint

from mllm_tailor.core.errors import ModelError
from mllm_tailor.models import generate, load_model, save_model
from mllm_tailor.models.convert import convert


def test_code_and_pickles_beside_an_original_checkpoint_are_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sign = tmp_path / "original", tmp_path / "sign"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_checkpoint(folder)
    modules = ["configuration_internvl_chat", "modeling_internvl_chat", "tokenization_internlm2", "conversation"]
    for name in modules:
        (folder / f"{name}.py").write_text(f"open({str(sign)!r}, 'w').write('run')\nclass InternLM2Tokenizer: pass\n")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(sign)))
    spoil(folder, trust_remote_code=True, auto_map={name: f"{module}.X" for name, module in AUTO.items()})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"trust_remote_code": True}))
    model = load_model(folder)
    save_model(model, tmp_path / "saved")
    assert generate([SAMPLE.unlabelled()], model, max_new_tokens=2) and not sign.exists()
    for file in (tmp_path / "saved").glob("*.json"):
        assert "trust_remote_code" not in file.read_text() and "auto_map" not in file.read_text()
    exec((folder / "conversation.py").read_text())
    assert sign.exists()  # the canary does sing


AUTO = {"AutoConfig": "configuration_internvl_chat", "AutoModel": "modeling_internvl_chat"}


# What is wrong


@pytest.mark.parametrize("keep", [4, 5000, -1])
def test_weights_cut_off(keep: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "original")
    file = tmp_path / "original" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors: .*(damaged|truncated).*download it again"):
        convert(tmp_path / "original", tmp_path / "native")


def spoil(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm_config": {"architectures": ["InternLM3ForCausalLM"]}}, "language model InternLM3.*InternLM2ForCausalLM"),
        ({"llm_config": {"rope_scaling": {"type": "spiral"}}}, "rope_scaling of type 'spiral'"),
        ({"template": "internlm3-chat"}, "conversation template.*internlm2-chat"),
        ({"ps_version": "v3"}, "ps_version 'v3'"),
        ({"pad2square": True}, "pad2square"),
        ({"force_image_size": 42}, "42 pixels do not divide.*fix force_image_size"),
        (
            {"llm_config": {"num_hidden_layers": 3}},
            r"\d+ weights are missing, the first is model.language_model.layers.2",
        ),
        ({"llm_config": {"num_hidden_layers": 1}}, "layers.1.* is not part of this layout"),
        ({"llm_config": {"vocab_size": 99}}, r"has shape \[\d+, 32\], config.json asks for \[99, 32\]"),
        ({"vision_config": {"intermediate_size": 99}}, "config.json asks for"),
    ],
)
def test_a_configuration_that_does_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "original")
    spoil(tmp_path / "original", **changes)
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "original", tmp_path / "native")
    assert not (tmp_path / "native").exists() and not list(tmp_path.glob(".native*"))


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a")
    settings = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    settings["additional_special_tokens"] = []
    settings["added_tokens_decoder"] = {
        place: token for place, token in settings["added_tokens_decoder"].items() if token["content"] != "<IMG_CONTEXT>"
    }
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="the tokenizer lacks <IMG_CONTEXT>"):
        convert(tmp_path / "a", tmp_path / "native")
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"half": ')
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: damaged"):
        convert(tmp_path / "a", tmp_path / "native")
    (tmp_path / "a" / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.model: missing"):
        convert(tmp_path / "a", tmp_path / "native")


def test_destinations_that_are_taken_and_sources_that_need_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "original")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(ModelError, match="is not empty"):
        convert(tmp_path / "original", tmp_path / "taken")
    with pytest.raises(ModelError, match="load it as it is"):
        convert(tiny_model_folder, tmp_path / "native")
