"""AdaLoRA's moving ranks; prefix and prompt tuning: what stands in front of the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import torch
from fixtures.small_job import (
    batch_of,
    difference,
    exact_logits,
    logits,
    make_conversations,
    open_small,
    prepare,
    shake,
    small_recipe,
    train,
)
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForMultimodalLM

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import ModelError, RecipeError
from mllm_tailor.methods import make_method
from mllm_tailor.methods.adalora import Adalora
from mllm_tailor.methods.adapters import ADAPTER, tuner_layers
from mllm_tailor.methods.method import injected_adapters
from mllm_tailor.models import prompt_inputs
from mllm_tailor.training.objectives.cross_entropy import answer_loss


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return make_conversations(tmp_path_factory.mktemp("pictures"), 4)


class TestAdalora:
    SPEC: ClassVar[dict[str, Any]] = {"name": "adalora", "rank": 6, "target": 2, "start": 0.1, "end": 0.3}

    @pytest.mark.slow
    def test_the_budget_falls_and_ranks_differ(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        model, method, recipe = prepare(tiny_model_folder, self.SPEC, epochs=5, batch_size=1, learning_rate=0.02)
        train(model, method, samples, recipe, tmp_path)
        layers = [layer for layer in tuner_layers(model.model).values() if ADAPTER in layer.lora_E]
        ranks = [int(layer.lora_E[ADAPTER].count_nonzero()) for layer in layers]
        assert sum(ranks) == 2 * len(ranks)
        assert len(set(ranks)) > 1

    def test_the_schedule(self) -> None:
        tuning_method = make_method(small_recipe(self.SPEC)).assignments[0].tuning_method
        assert isinstance(tuning_method, Adalora)
        budgets = [tuning_method.budget(step, 100) for step in range(100)]
        assert budgets[:11] == [6] * 11
        assert budgets[40] == pytest.approx(2 + 4 * 0.5**3)
        assert budgets[70:] == [2] * 30

    def test_the_penalty_is_added_once_a_step(self, tiny_model_folder: Path, samples: list[Conversation]) -> None:
        """Two passes: the gradient of E's neighbours is that of the penalty alone while E is zero."""
        model, method, _ = prepare(tiny_model_folder, {**self.SPEC, "orthogonal": 0.5})
        method.begin_step(model, 0, 0)
        for part in (samples[:1], samples[1:2]):
            summed, _ = answer_loss(model.model, batch_of(model, part))
            summed.backward()
        layer = next(iter(tuner_layers(model.model).values()))
        rows = layer.lora_A[ADAPTER].detach().clone().requires_grad_(True)
        count = 2 * len(tuner_layers(model.model))
        (0.5 / count * (rows @ rows.T - torch.eye(6)).norm()).backward()
        assert difference(layer.lora_A[ADAPTER].grad, rows.grad) < 1e-5

    @pytest.mark.slow
    def test_written_as_a_plain_lora(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        model, method, recipe = prepare(tiny_model_folder, self.SPEC, epochs=5, batch_size=1, learning_rate=0.02)
        train(model, method, samples, recipe, tmp_path)
        wanted = exact_logits(model, samples)
        base = AutoModelForMultimodalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        model.model = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
        assert model.model.peft_config["default"].peft_type == "LORA"
        assert difference(exact_logits(model, samples), wanted) < 2e-6

    @pytest.mark.parametrize("name", ["lomo", "adalomo", "mezo"])
    def test_refused_without_gradients(self, name: str) -> None:
        with pytest.raises(RecipeError, match="use adamw"):
            make_method(small_recipe(self.SPEC, optimizer=name))

    def test_a_target_above_the_rank(self) -> None:
        with pytest.raises(RecipeError, match="for a fixed rank use lora"):
            make_method(small_recipe({**self.SPEC, "target": 6}))


FRONT: dict[str, dict[str, Any]] = {
    "prefix": {"name": "prefix", "length": 3},
    "one softmax": {"name": "prefix", "length": 3, "gated": False},
    "prompt": {"name": "prompt", "length": 3},
}


class TestInFront:
    @torch.no_grad()
    def test_a_prompt_equals_embeddings_put_before_the_text(
        self, tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        model, _, _ = prepare(tiny_model_folder, FRONT["prompt"])
        sample = samples[:1]
        ours = logits(model, sample)
        inputs = batch_of(model, sample)
        decoder = model.model.model.language_model
        plain = open_small(tiny_model_folder, make_method(small_recipe("lora")))
        caught: list[Any] = []
        handle = plain.model.model.language_model.register_forward_pre_hook(
            lambda _, __, named: caught.append(named["inputs_embeds"]), with_kwargs=True
        )
        logits(plain, sample)
        handle.remove()
        joined = torch.cat([decoder.prompt[None], caught[0]], dim=1)
        hidden = plain.model.model.language_model(inputs_embeds=joined, use_cache=False).last_hidden_state
        wanted = plain.model.lm_head(hidden[:, len(decoder.prompt) :])
        assert wanted.shape[1] == inputs["input_ids"].shape[1]
        assert difference(ours, wanted) < 1e-5

    @torch.no_grad()
    def test_one_softmax_equals_the_formula(self, tiny_model_folder: Path, samples: list[Conversation]) -> None:
        """Of one attention, by hand: softmax over [prefix, own keys up to one's own place]."""
        torch.manual_seed(0)
        model, _, _ = prepare(tiny_model_folder, FRONT["one softmax"])
        from mllm_tailor.methods.prefix import attend

        module = model.model.model.language_model.layers[0].self_attn
        heads, groups, channels = module.config.num_attention_heads, module.num_key_value_groups, module.head_dim
        query = torch.randn(2, heads, 5, channels)
        key, value = torch.randn(2, 2, heads // groups, 5, channels)
        module.prefix = (module.prefix_key, module.prefix_value)
        found, _ = attend(module, query, key, value, None, scaling=module.scaling)
        keys = torch.cat([module.prefix_key.expand(2, -1, -1, -1), key], dim=2).repeat_interleave(groups, dim=1)
        values = torch.cat([module.prefix_value.expand(2, -1, -1, -1), value], dim=2).repeat_interleave(groups, dim=1)
        scores = query @ keys.transpose(2, 3) * module.scaling
        scores[..., 3:].masked_fill_(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
        assert difference((scores.softmax(-1) @ values).transpose(1, 2), found) < 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("case", FRONT)
    def test_cached_decoding_says_what_whole_passes_say(
        self, case: str, tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        model, _, _ = prepare(tiny_model_folder, FRONT[case])
        shake(model, 0.5)
        inputs = prompt_inputs(samples, model)
        short = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": model.pad_id, "eos_token_id": -1}
        model.model.eval()
        with torch.no_grad():
            cached = model.model.generate(**inputs, **short)
            whole = model.model.generate(**inputs, **short, use_cache=False)
        assert torch.equal(cached, whole)

    @pytest.mark.slow
    @pytest.mark.parametrize("case", FRONT)
    def test_recomputed_activations_give_the_same_gradients(
        self, case: str, tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        found = []
        for recompute in (False, True):
            model, _, _ = prepare(tiny_model_folder, FRONT[case])
            shake(model, 0.5) if case == "prefix" else None
            torch.manual_seed(1)
            if recompute:
                model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.model.train()
            summed, _ = answer_loss(model.model, batch_of(model, samples))
            summed.backward()
            found.append({n: w.grad for n, w in model.model.named_parameters() if w.requires_grad})
        if case != "prefix":  # its shaken weights differ from run to run
            assert all(difference(found[0][name], found[1][name]) < 1e-5 for name in found[0])
        assert all(isinstance(gradient, torch.Tensor) for gradient in found[1].values())

    def test_saved_weights_are_only_those_in_front(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model, method, _ = prepare(tiny_model_folder, FRONT["prefix"])
        method.save(model, tmp_path)
        tensors = load_file(tmp_path / "trained.safetensors")
        assert set(tensors) == set(injected_adapters(model)[0].trainable)
        assert len(tensors) == 2 * 3

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ({"name": "prefix", "parts": ["vision"]}, "works on language, not on vision"),
            ({"name": "prompt", "parts": {"projector": {}}}, "works on language"),
        ],
    )
    def test_parts_it_cannot_work_on(self, spec: dict[str, Any], words: str) -> None:
        with pytest.raises(RecipeError, match=words):
            make_method(small_recipe(spec))

    def test_an_attention_of_another_kind(self, tiny_model_folder: Path) -> None:
        method = make_method(small_recipe(FRONT["prefix"]))
        model = open_small(tiny_model_folder, method)
        for module in model.model.modules():
            if hasattr(module, "config") and isinstance(module, nn.Module):
                module.config._attn_implementation = "eager"
        with pytest.raises(ModelError, match="SDPA"):
            method.apply(model)
