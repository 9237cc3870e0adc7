"""What is special to single methods: scales, starts, frozen halves, cut ranks, places of adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes
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
    snapshot,
    train,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForMultimodalLM
from typer.testing import CliRunner

from mllm_tailor.cli.app import app
from mllm_tailor.core.errors import ModelError, RecipeError, RunError
from mllm_tailor.core.manifest import create, record
from mllm_tailor.core.sample import Sample
from mllm_tailor.methods import bottleneck_layers, make_method, truncate
from mllm_tailor.methods.adapters import tuner_layers
from mllm_tailor.methods.method import injected_adapters
from mllm_tailor.recipe import dump_recipe
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.trainable import learning_rates

DYLORA = {"name": "dylora", "rank": 6, "alpha": 12}
QUERY = "model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_conversations(tmp_path_factory.mktemp("pictures"), 4)


def backward(model: Any, samples: list[Sample]) -> None:
    model.model.zero_grad()
    summed, count = answer_loss(model.model, batch_of(model, samples))
    (summed / count).backward()


def kept_bytes(model: Any, samples: list[Sample]) -> int:
    """Bytes of distinct tensors the language model keeps for the backward pass, frozen weights left out."""
    weights = {weight.data_ptr() for weight in model.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.numel() * tensor.element_size())
        return tensor

    held = []  # keeps addresses from being used twice
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor) or pack(tensor), lambda t: t):
        answer_loss(model.model, batch_of(model, samples))
    return sum(kept.values())


class TestLoraPlus:
    def test_rates(self, tiny_model_folder: Path) -> None:
        model, _, _ = prepare(tiny_model_folder, {"name": "lora_plus", "rank": 4, "ratio": 8})
        rates = learning_rates(model, 1e-3)
        assert rates[f"{QUERY}.lora_A.default.weight"] == 1e-3
        assert rates[f"{QUERY}.lora_B.default.weight"] == 8e-3

    @pytest.mark.slow
    def test_a_ratio_of_one_is_lora(self, tiny_model_folder: Path, samples: list[Sample], tmp_path: Path) -> None:
        found = []
        for name, extra in (("lora", {}), ("lora_plus", {"ratio": 1.0})):
            model, method, recipe = prepare(tiny_model_folder, {"name": name, "rank": 4, **extra})
            train(model, method, samples, recipe, tmp_path / name)
            found.append(snapshot(model))
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


class TestLoraFa:
    @pytest.mark.slow
    def test_a_never_moves_and_less_is_kept(
        self, tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
    ) -> None:
        kept = {}
        for name in ("lora", "lora_fa"):
            model, method, recipe = prepare(tiny_model_folder, {"name": name, "rank": 4})
            before = snapshot(model)
            kept[name] = kept_bytes(model, samples)
            train(model, method, samples, recipe, tmp_path / name)
            after = snapshot(model)
            halves = [name for name in after if ".lora_A." in name]
            same = [torch.equal(before[half], after[half]) for half in halves]
            assert all(same) if name == "lora_fa" else not any(same)
        assert kept["lora"] / kept["lora_fa"] > 1.2

    def test_the_update_stays_in_the_rows_of_a(
        self, tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
    ) -> None:
        """dW (I - A+ A) = 0: whatever B becomes, the update sees nothing but what A lets through."""
        model, method, recipe = prepare(tiny_model_folder, {"name": "lora_fa", "rank": 4})
        train(model, method, samples, recipe, tmp_path)
        layer = model.model.get_submodule(QUERY)
        down, up = (layer.get_parameter(f"lora_{half}.default.weight").detach().double() for half in "AB")
        update = up @ down
        beside = torch.eye(64, dtype=torch.float64) - torch.linalg.pinv(down) @ down
        assert update.abs().max() > 0
        assert (update @ beside).abs().max() < 1e-10

    def test_projected_gradient(self, tiny_model_folder: Path, samples: list[Sample]) -> None:
        """g (A A^T)^-1 / s^2, the closest B can come to the full gradient; PEFT's optimizer computes it in bf16."""
        plain, _, _ = prepare(tiny_model_folder, {"name": "lora_fa", "rank": 4})
        projected, _, _ = prepare(tiny_model_folder, {"name": "lora_fa", "rank": 4, "projected": True})
        gradients = []
        for model in (plain, projected):
            backward(model, samples)
            gradients.append(model.model.get_submodule(QUERY).lora_B["default"].weight.grad)
        down = plain.model.get_submodule(QUERY).lora_A["default"].weight.detach()
        wanted = gradients[0] @ torch.linalg.inv(down @ down.T) / 2.0**2
        assert difference(wanted, gradients[1]) < 1e-4


class TestDylora:
    def test_the_full_rank_is_lora(self, tiny_model_folder: Path, samples: list[Sample]) -> None:
        found = []
        for name in ("lora", "dylora"):
            model, _, _ = prepare(tiny_model_folder, {**DYLORA, "name": name})
            torch.manual_seed(0)
            shake(model)
            found.append(logits(model, samples))
        assert torch.equal(*found)

    @pytest.mark.slow
    @pytest.mark.parametrize("rank", [1, 3, 5])
    def test_cut_at_b_is_lora_of_rank_b(
        self, rank: int, tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
    ) -> None:
        model, method, _ = prepare(tiny_model_folder, DYLORA)
        shake(model)
        method.save(model, tmp_path / "whole")
        method.assignments[0].tuning_method.use_rank(injected_adapters(model)[0], rank)
        wanted = exact_logits(model, samples)
        truncate(tmp_path / "whole", rank, tmp_path / "cut")
        assert load_file(tmp_path / "cut" / "adapter_model.safetensors")[
            f"base_model.model.{QUERY}.lora_A.weight"
        ].shape == (rank, 64)
        lora = make_method(small_recipe({"name": "lora", "rank": rank, "alpha": 12}))
        plain = open_small(tiny_model_folder, lora)
        lora.load(plain, tmp_path / "cut")
        assert difference(wanted, exact_logits(plain, samples)) <= 1e-6

    @pytest.mark.parametrize("frozen", [True, False])
    def test_which_rows_get_a_gradient(self, frozen: bool, tiny_model_folder: Path, samples: list[Sample]) -> None:
        model, method, _ = prepare(tiny_model_folder, {**DYLORA, "frozen": frozen})
        shake(model)
        method.assignments[0].tuning_method.use_rank(injected_adapters(model)[0], 3)
        backward(model, samples)
        layer = model.model.get_submodule(QUERY)
        rows = layer.lora_A["default"].weight.grad.abs().sum(dim=1) > 0
        columns = layer.lora_B["default"].weight.grad.abs().sum(dim=0) > 0
        wanted = [False, False, True, False, False, False] if frozen else [True, True, True, False, False, False]
        assert rows.tolist() == columns.tolist() == wanted

    @pytest.mark.slow
    def test_every_step_draws_its_rank(self, tiny_model_folder: Path, samples: list[Sample], tmp_path: Path) -> None:
        model, method, recipe = prepare(tiny_model_folder, DYLORA, epochs=12)
        ranks = []
        tuning_method = method.assignments[0].tuning_method
        use = tuning_method.use_rank
        tuning_method.use_rank = lambda attached, rank: (ranks.append(rank), use(attached, rank))
        train(model, method, samples, recipe, tmp_path)
        assert ranks[1::2] == [6] * 12  # whole again after each step
        assert len(set(ranks[::2])) > 2
        assert set(ranks[::2]) <= set(range(1, 7))

    @pytest.mark.slow
    def test_the_command_cuts_a_finished_run(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model, method, recipe = prepare(tiny_model_folder, DYLORA)
        run = tmp_path / "run"
        method.save(model, run / "adapter")
        (run / "recipe.yaml").write_text(dump_recipe(recipe))
        create(run)
        record(run, run / "adapter", run / "recipe.yaml")
        words = ["truncate", str(run), "--rank", "2", "--out", str(tmp_path / "cut")]
        with pytest.raises(RunError, match="training has not ended"):
            CliRunner().invoke(app, words, catch_exceptions=False)
        (run / "training.json").write_text("{}")
        record(run, run / "training.json")
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        cut = peft.PeftConfig.from_pretrained(str(tmp_path / "cut"))
        assert (cut.peft_type, cut.r, cut.lora_alpha) == ("LORA", 2, 12)
        with pytest.raises(RunError, match="not empty"):
            CliRunner().invoke(app, words, catch_exceptions=False)

    def test_other_adapters_cannot_be_cut(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model, method, _ = prepare(tiny_model_folder, {"name": "lora", "rank": 4})
        method.save(model, tmp_path / "lora")
        with pytest.raises(ModelError, match="not a DyLoRA adapter"):
            truncate(tmp_path / "lora", 2, tmp_path / "cut")
        model, method, _ = prepare(tiny_model_folder, DYLORA)
        method.save(model, tmp_path / "dylora")
        with pytest.raises(ModelError, match="from 1 to 6"):
            truncate(tmp_path / "dylora", 7, tmp_path / "cut")


class TestPissa:
    def test_starts_from_the_principal_part(self, tiny_model_folder: Path) -> None:
        model, _, _ = prepare(tiny_model_folder, {"name": "pissa", "rank": 4, "iterations": None})
        base = AutoModelForMultimodalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        whole = base.get_submodule(QUERY).weight.detach()
        residual = model.model.get_submodule(QUERY).base_layer.weight.detach()
        singular = torch.linalg.svdvals(whole)
        assert torch.linalg.svdvals(residual)[0] == pytest.approx(float(singular[4]), rel=1e-4)

    @pytest.mark.slow
    def test_plain_peft_opens_what_is_saved(
        self, tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
    ) -> None:
        model, method, _ = prepare(tiny_model_folder, {"name": "pissa", "rank": 4})
        shake(model)
        wanted = exact_logits(model, samples)
        method.save(model, tmp_path)
        base = AutoModelForMultimodalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        model.model = peft.PeftModel.from_pretrained(base, str(tmp_path))
        assert model.model.peft_config["default"].r == 8
        assert difference(wanted, exact_logits(model, samples)) < 2e-6


class TestBottleneck:
    @pytest.mark.slow
    @pytest.mark.parametrize("placement", ["series", "parallel", "houlsby", "pfeiffer"])
    def test_places_by_formula(self, placement: str, tiny_model_folder: Path, samples: list[Sample]) -> None:
        """Each adapted layer computes what the paper's equation says; switched off, the base is back."""
        method = make_method(small_recipe({"name": "bottleneck", "placement": placement, "width": 8, "scale": 0.5}))
        model = open_small(tiny_model_folder, method)
        before = logits(model, samples)
        method.apply(model)
        shake(model)
        found = set()
        for name, layer in tuner_layers(model.model).items():
            hidden = torch.randn(2, layer.get_base_layer().in_features)
            weight = layer.get_base_layer().weight
            down, up = (getattr(layer, f"bottleneck_{half}")["default"].weight for half in ("down", "up"))

            def small(h: Tensor, down: Tensor = down, up: Tensor = up) -> Tensor:
                return 0.5 * torch.tanh(h @ down.T) @ up.T

            found.add((name.rpartition(".")[2], layer.position))
            wanted = {
                "front": lambda h, w=weight, f=small: (h + f(h)) @ w.T,
                "behind": lambda h, w=weight, f=small: h @ w.T + f(h @ w.T),
                "beside": lambda h, w=weight, f=small: h @ w.T + f(h),
            }[layer.position](hidden)
            assert difference(wanted, layer(hidden)) < 1e-6
        up_front = {("gate_proj", "front"), ("up_proj", "front")}
        assert (
            found
            == {
                "series": up_front,
                "parallel": {("gate_proj", "beside"), ("up_proj", "beside"), ("down_proj", "beside")},
                "houlsby": up_front | {("down_proj", "behind")},
                "pfeiffer": {("down_proj", "behind")},
            }[placement]
        )
        assert not torch.equal(logits(model, samples), before)
        for layer in tuner_layers(model.model).values():
            layer.enable_adapters(False)
        assert torch.equal(logits(model, samples), before)

    def test_peft_saves_loads_and_unloads_it(
        self, tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
    ) -> None:
        """A test for each PEFT release: it knows these adapters while they are registered, and only then."""
        model, method, _ = prepare(tiny_model_folder, {"name": "bottleneck", "width": 8})
        shake(model)
        wanted = logits(model, samples)
        method.save(model, tmp_path / "ours")
        base = AutoModelForMultimodalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        with pytest.raises(KeyError, match="BOTTLENECK"):
            peft.PeftModel.from_pretrained(base, str(tmp_path / "ours"))
        with bottleneck_layers.register():
            model.model = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours"))
            assert torch.equal(logits(model, samples), wanted)
            with model.model.disable_adapter():
                untouched = logits(model, samples)
            model.model.save_pretrained(tmp_path / "peft")
        ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "peft"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        model.model = model.model.unload()
        assert torch.equal(logits(model, samples), untouched)


class TestNf4:
    """The number format under QLoRA, for weights as they are (normal, spread 0.02)."""

    @staticmethod
    def packed(double: bool) -> tuple[Tensor, Tensor, Any]:
        torch.manual_seed(0)
        weights = torch.randn(512, 1024) * 0.02
        codes, state = bitsandbytes.functional.quantize_4bit(
            weights, blocksize=64, quant_type="nf4", compress_statistics=double
        )
        return weights, codes, state

    def test_error(self) -> None:
        errors = []
        for double in (False, True):
            weights, codes, state = self.packed(double)
            back = bitsandbytes.functional.dequantize_4bit(codes, state)
            errors.append(float((back - weights).square().mean().sqrt() / weights.square().mean().sqrt()))
            if not double:
                largest = weights.view(-1, 64).abs().amax(dim=1, keepdim=True)
                assert ((back - weights).view(-1, 64).abs() <= 0.1525 * largest).all()  # half the widest gap
        assert errors[0] == pytest.approx(0.092, abs=0.001)
        assert abs(errors[1] - errors[0]) < 2e-4

    @pytest.mark.parametrize(
        ("kind", "block", "wanted"),
        [("nf4", 64, 0.0920), ("nf4", 128, 0.0956), ("nf4", 256, 0.0987), ("fp4", 64, 0.1219), ("fp4", 128, 0.1286)],
    )
    def test_error_by_block_and_codebook(self, kind: str, block: int, wanted: float) -> None:
        """Wider blocks and evenly spread codes lose more; what is packed again stays the same."""
        functional = bitsandbytes.functional
        weights = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
        codes, state = functional.quantize_4bit(weights, blocksize=block, quant_type=kind)
        back = functional.dequantize_4bit(codes, state)
        error = (back - weights).square().mean().sqrt() / weights.square().mean().sqrt()
        assert float(error) == pytest.approx(wanted, abs=0.001)
        again = functional.dequantize_4bit(*functional.quantize_4bit(back, blocksize=block, quant_type=kind))
        assert torch.equal(again, back)
        assert codes.numel() == weights.numel() / 2

    def test_bits(self) -> None:
        weights, codes, state = self.packed(double=True)
        inner = state.state2.absmax
        stored = (
            codes.numel() + state.absmax.numel() * state.absmax.element_size() + inner.numel() * inner.element_size()
        )
        assert 8 * stored / weights.numel() == pytest.approx(4.127, abs=0.001)


class TestRefusals:
    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ({"name": "dylora", "dora": True}, "dora"),
            ({"name": "dylora", "rslora": True}, "rslora"),
            ({"name": "lora_fa", "dora": True}, "dora"),
            ({"name": "pissa", "init": "gaussian"}, "init"),
            ({"name": "lora", "init": "loftq"}, r"`init`: loftq .* only on a GPU.* use method qlora"),
            ({"name": "bottleneck", "placement": "serial"}, "placement"),
        ],
    )
    def test_settings_that_do_not_go_together(self, spec: dict[str, Any], words: str) -> None:
        with pytest.raises(RecipeError, match=words):
            make_method(small_recipe(spec))

    def test_blocks_that_do_not_divide(self, tiny_model_folder: Path) -> None:
        with pytest.raises(RecipeError, match="does not divide the 64 inputs"):
            prepare(tiny_model_folder, {"name": "oft", "block": 24})
