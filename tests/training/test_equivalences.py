"""What makes a step cheaper must not change it: losses and gradients against the usual way."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.families import family_folder, samples_of
from fixtures.small_job import batch_of, learned, make_conversations, prepare, shake
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mllm_tailor.core.conversation import Exchange, Message
from mllm_tailor.core.device import seed_everything
from mllm_tailor.generation.prefill import Prefill
from mllm_tailor.models import LoadedModel, encode
from mllm_tailor.models.patches import last_layer
from mllm_tailor.models.patches.fused_lora import GatedProduct, Product, Rounding, fused_lora
from mllm_tailor.training.batches import collate_right
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.precision import frozen_in_bf16


def opened(folder: Path, method: dict[str, Any] | str) -> LoadedModel:
    """The tiny model with a method whose weights are no longer zero."""
    model, _, _ = prepare(folder, method)
    shake(model)
    return model


def agree(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    """Equal up to rounding in float32."""
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in other[1].items():
        assert torch.linalg.norm(one[1][name] - gradient) <= 1e-5 * torch.linalg.norm(gradient) + 1e-9, name


METHODS = [{"name": "lora", "rank": 4}, {"name": "full", "parts": ["language"]}, {"name": "prompt", "length": 3}]


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: method["name"])
def test_further_turns_teach_what_samples_of_their_own_do(
    method: dict[str, Any], tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = opened(tiny_model_folder, method)
    first = make_conversations(tmp_path, 1)[0]
    asked, answer = Message("user", ("Read the text.",)), "KEDAI A"
    earlier = (*first.messages, Message("assistant", (first.answer or "",)))
    last = replace(first, messages=(*earlier, asked), answer=answer)
    together = learned(model, batch_of(model, [replace(first, further=(Exchange(asked.text, answer),))]))
    alone = [learned(model, batch_of(model, [sample])) for sample in (first, last)]
    gradients = {name: tensor + alone[1][1][name] for name, tensor in alone[0][1].items()}
    agree(together, (alone[0][0] + alone[1][0], gradients))


class TestLastLayer:
    @pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
    def test_leaves_losses_and_gradients_as_they_are(
        self, method: dict[str, Any], tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = opened(tiny_model_folder, method)
        batch = batch_of(model, make_conversations(tmp_path, 3))
        layer = model.model.get_decoder().layers[-1]
        widths: list[int] = []
        layer.mlp.register_forward_hook(lambda _, inputs, output: widths.append(inputs[0].shape[1]))
        monkeypatch.setattr(last_layer, "MIN_SKIPPED", 10**9)
        whole = learned(model, batch)
        monkeypatch.setattr(last_layer, "MIN_SKIPPED", 1)
        agree(learned(model, batch), whole)
        first = int((batch["labels"] != -100).any(0).nonzero()[0]) - 1
        own = method["name"] == "prompt"  # an attention of its own, which is left alone
        assert widths[-1] == (max(widths) if own else batch["labels"].shape[1] - first)
        assert "forward" not in vars(layer)  # as it was

    def test_padding_masks_and_recomputing(
        self, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = opened(tiny_model_folder, METHODS[0])
        samples = make_conversations(tmp_path, 3)
        monkeypatch.setattr(last_layer, "MIN_SKIPPED", 1)
        unmasked = collate_right([encode(sample, model) for sample in samples], model)
        assert "attention_mask" not in unmasked
        agree(learned(model, unmasked), learned(model, batch_of(model, samples)))
        model.model.train()
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        recomputed = learned(model, unmasked)
        monkeypatch.setattr(last_layer, "MIN_SKIPPED", 10**9)
        agree(learned(model, unmasked), recomputed)

    @pytest.mark.slow
    def test_a_prompt_read_for_its_last_token(
        self, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Prompts of two lengths: the cache and what follows are those of whole layers, masks and padding."""
        model = opened(tiny_model_folder, METHODS[0])
        model.model.eval()
        prompts = [encode(sample.unlabelled(), model) for sample in make_conversations(tmp_path, 3)]
        prompts.append(replace(prompts[0], ids=prompts[0].ids[:-2], labels=prompts[0].labels[:-2]))
        prefill = Prefill(model, None)
        found = []
        for worth, read in ((10**9, prefill._read), (1, prefill.read)):
            monkeypatch.setattr(last_layer, "MIN_SKIPPED", worth)
            with torch.inference_mode():
                found.append(read(prompts))
        first, second = found
        whole, shortened = first.kv, second.kv
        assert torch.equal(first.ids, second.ids) and torch.equal(whole.mask, shortened.mask)
        torch.testing.assert_close(second.logits, first.logits, rtol=1e-4, atol=1e-5)
        real = whole.mask[:, None, :, None]
        for one, other in zip(shortened.cache.layers, whole.cache.layers, strict=True):
            torch.testing.assert_close(one.keys * real, other.keys * real, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.values * real, other.values * real, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen2_5_vl", "gemma3"])
    def test_other_families(
        self,
        kind: str,
        families: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model = opened(family_folder(families, kind), METHODS[0])
        batch = batch_of(model, samples_of(kind)[:2])
        monkeypatch.setattr(last_layer, "MIN_SKIPPED", 10**9)
        whole = learned(model, batch)
        monkeypatch.setattr(last_layer, "MIN_SKIPPED", 1)
        agree(learned(model, batch), whole)


def reach(model: LoadedModel, batch: dict[str, Tensor], row: int) -> list[float]:
    """How strongly the loss of one sample of a pass depends on the embeddings of each: the largest gradient."""
    embeds: list[Tensor] = []

    def watch(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        embeds.append(named["inputs_embeds"].detach().requires_grad_())
        return inputs, {**named, "inputs_embeds": embeds[0]}

    labels = torch.full_like(batch["labels"], -100)
    labels[row] = batch["labels"][row]
    handle = model.model.get_decoder().register_forward_pre_hook(watch, with_kwargs=True)
    try:
        answer_loss(model.model, {**batch, "labels": labels})[0].backward()
    finally:
        handle.remove()
    return embeds[0].grad.abs().flatten(1).amax(1).tolist()


class TestSamplesOfAPass:
    """Samples that share a pass do not see each other: not a little, but not at all."""

    def test_no_gradient_crosses(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model = opened(tiny_model_folder, METHODS[0])
        items = [encode(sample, model) for sample in make_conversations(tmp_path, 3)]
        items[1] = replace(items[1], ids=items[1].ids[:-3], labels=items[1].labels[:-3])  # a pass of two lengths
        batch = collate_right(items, model)
        for row in range(3):
            found = reach(model, batch, row)
            assert found[row] > 0
            assert [value for place, value in enumerate(found) if place != row] == [0, 0]

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "glm4v", "idefics3"])
    def test_nor_in_other_families(self, kind: str, families: Path) -> None:
        model = opened(family_folder(families, kind), METHODS[0])
        batch = batch_of(model, samples_of(kind)[:2])
        for row in range(2):
            found = reach(model, batch, row)
            assert found[row] > 0
            assert found[1 - row] == 0


class TestProducts:
    def test_gradients_are_those_of_the_formula(self) -> None:
        seed_everything(0)
        rows, weight, bias, down, up = (
            torch.randn(size, dtype=torch.float64, requires_grad=asked)
            for size, asked in (((5, 7), True), ((3, 7), False), ((3,), False), ((2, 7), True), ((3, 2), True))
        )
        found = Product.apply(rows, rows.detach(), weight, bias, down, up, 0.5)
        assert torch.allclose(found, rows @ weight.T + bias + 0.5 * rows @ down.T @ up.T, rtol=1e-12)

        def product(x: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
            return Product.apply(x, x.detach(), weight, bias, down, up, 0.5)

        assert torch.autograd.gradcheck(product, (rows, bias, down, up))
        assert torch.autograd.gradcheck(lambda *halves: product(rows, None, *halves), (down, up))

    def test_gradients_of_a_gated_product(self) -> None:
        seed_everything(0)
        gate, other, weight, bias, down, up = (
            torch.randn(size, dtype=torch.float64, requires_grad=asked)
            for size, asked in (
                ((5, 7), True),
                ((5, 7), True),
                ((3, 7), False),
                ((3,), False),
                ((2, 7), True),
                ((3, 2), True),
            )
        )
        rows = torch.nn.functional.silu(gate) * other
        found = GatedProduct.apply(gate, other, weight, bias, down, up, 0.5)
        assert torch.allclose(found, rows @ weight.T + bias + 0.5 * rows @ down.T @ up.T, rtol=1e-12)

        def product(gate: Tensor, other: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
            return GatedProduct.apply(gate, other, weight, bias, down, up, 0.5)

        assert torch.autograd.gradcheck(product, (gate, other, bias, down, up))
        assert torch.autograd.gradcheck(lambda *halves: product(gate, other, None, *halves), (down, up))
        assert torch.autograd.gradcheck(lambda *rows: product(*rows, None, down, up), (gate, other))

    def test_an_input_is_rounded_once(self) -> None:
        rounding, rows = Rounding(), torch.randn(3, 4)
        assert rounding(rows, torch.float32) is rows
        found = rounding(rows, torch.bfloat16)
        assert torch.equal(found, rows.bfloat16())
        assert rounding(rows, torch.bfloat16) is found
        rows.add_(1)
        assert torch.equal(rounding(rows, torch.bfloat16), rows.bfloat16())
        assert torch.equal(rounding(rows + 1, torch.bfloat16), (rows + 1).bfloat16())
        with torch.inference_mode():
            again = rows + 1
            assert torch.equal(rounding(again, torch.bfloat16), again.add_(1).sub_(1).bfloat16())

    def test_fewer_activations_are_kept(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model = opened(tiny_model_folder, {"name": "lora", "rank": 4, "dropout": 0.0})
        batch = batch_of(model, make_conversations(tmp_path, 2))
        kept = []
        for context in (nullcontext(), fused_lora(model.model)):
            found: dict[int, int] = {}

            def keep(tensor: Tensor, found: dict[int, int] = found) -> Tensor:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with context, torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(keep, lambda tensor: tensor):
                answer_loss(model.model, batch)
            kept.append(sum(found.values()))
        assert kept[1] < 0.85 * kept[0]

    def test_a_model_learns_the_same(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model = opened(tiny_model_folder, {"name": "lora", "rank": 4, "dropout": 0.0})
        batch = batch_of(model, make_conversations(tmp_path, 2))
        usual = learned(model, batch)
        with fused_lora(model.model):
            changed = [layer for layer in model.model.modules() if "forward" in vars(layer)]
            agree(learned(model, batch), usual)
            with model.model.disable_adapter() if hasattr(model.model, "disable_adapter") else nullcontext():
                answer_loss(model.model, batch)
        assert len(changed) == 8 * len(model.model.get_decoder().layers)
        assert not any("forward" in vars(layer) for layer in changed)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", [{"name": "lora", "dropout": 0.1}, {"name": "lora", "dora": True}, "dylora"])
    def test_what_is_no_plain_lora_is_left_alone(self, method: Any, tiny_model_folder: Path) -> None:
        model = opened(tiny_model_folder, method)
        with fused_lora(model.model):
            assert not any("forward" in vars(layer) for layer in model.model.modules())


class TestBf16:
    """On whatever processor: autocast rounds alike where bf16 is emulated."""

    def test_frozen_weights_held_in_bf16_change_no_bit(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model = opened(tiny_model_folder, {"name": "lora", "rank": 4})
        batch = batch_of(model, make_conversations(tmp_path, 2))
        weights = dict(model.model.named_parameters())
        for weight in weights.values():
            weight.data = weight.data.bfloat16().float()
        finer = next(
            weight for name, weight in weights.items() if name.endswith("layers.1.mlp.up_proj.base_layer.weight")
        )
        finer.data[0, 0] += 1e-6
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        with torch.autocast("cpu", torch.bfloat16):
            usual = learned(model, batch)
            with frozen_in_bf16(model, bf16=True):
                held = [name for name, weight in weights.items() if weight.dtype == torch.bfloat16]
                found = learned(model, batch)
        assert len(held) == 2 * 7 - 1 + 6 + 1, "all linear layers and their biases, the head; not the finer one"
        assert finer.dtype == torch.float32 and all("lora" not in name and "vision" not in name for name in held)
        assert found[0] == usual[0] and all(torch.equal(found[1][name], usual[1][name]) for name in usual[1])
        assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
        with frozen_in_bf16(model, bf16=False):
            assert all(weight.dtype == torch.float32 for weight in weights.values())

    def test_summed_products_round_no_worse_than_usual(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model = opened(tiny_model_folder, {"name": "lora", "rank": 4, "dropout": 0.0})
        batch = batch_of(model, make_conversations(tmp_path, 2))
        exact = learned(model, batch)[1]
        with torch.autocast("cpu", torch.bfloat16):
            usual = learned(model, batch)[1]
            with fused_lora(model.model):
                summed = learned(model, batch)[1]
        assert any(not torch.equal(summed[name], usual[name]) for name in exact), "the sums were not taken"
        far, farther = (sum(float((one[name] - exact[name]).norm() ** 2) for name in exact) for one in (summed, usual))
        assert far <= 2 * farther
