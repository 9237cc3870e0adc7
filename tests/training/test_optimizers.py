"""Optimizers that are not torch's: LOMO, AdaLOMO, MeZO; and LISA, which changes what one sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_job import batch_of, make_conversations, prepare, small_recipe, snapshot, train
from safetensors import safe_open
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.methods import make_method
from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save
from mllm_tailor.recipe import Train
from mllm_tailor.training import check_settings
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.optim.mezo import MezoStep, direction, replay
from mllm_tailor.training.optim.registry import OptimizerConfig, ParamGroup, make_optimizer_step

FULL = {"name": "full"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return make_conversations(tmp_path_factory.mktemp("pictures"), 8)


@pytest.fixture(scope="module")
def tied_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tied"
    tokenizer = build_tokenizer()
    model = build_internvl(
        tokenizer, vision_width=32, vision_layers=1, text_width=64, text_layers=1, image_size=56, head_width=16
    )
    save(model, build_processor(tokenizer, 56, max_tiles=4), folder)
    return folder


def trained(
    folder: Path, model_folder: Path, samples: list[Conversation], method: Any, **settings: Any
) -> dict[str, Tensor]:
    model, chosen, recipe = prepare(model_folder, method, **settings)
    train(model, chosen, samples, recipe, folder)
    return snapshot(model)


class Alive(TorchDispatchMode):
    """Counts the bytes of storages made by torch while it is on; `most` is the highest count."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((arguments, named)) if _is_tensor(tensor)}
        made = function(*arguments, **(named or {}))
        self.sizes = {key: found for key, found in self.sizes.items() if not found[0].expired()}
        for tensor in tree_leaves(made):
            if _is_tensor(tensor) and (key := tensor.untyped_storage()._cdata) not in given:
                self.sizes.setdefault(
                    key, (StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes())
                )
        self.most = max(self.most, sum(size for _, size in self.sizes.values()))
        return made


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


class TestLomo:
    @pytest.mark.slow
    @pytest.mark.parametrize("clip", [None, 0.05])
    @pytest.mark.parametrize("recompute", [False, True])
    def test_equals_gradient_descent(
        self, clip: float | None, recompute: bool, tied_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        """Difference 0.0, with tied embeddings, clipping and recomputed activations."""
        settings = {
            "max_grad_norm": clip,
            "gradient_checkpointing": recompute,
            "learning_rate": 0.1,
            "schedule": "linear",
        }
        sgd = trained(
            tmp_path / "sgd", tied_model_folder, samples, FULL, optimizer="sgd", micro_batch_size=4, **settings
        )
        lomo = trained(tmp_path / "lomo", tied_model_folder, samples, {"name": "lomo"}, **settings)
        assert all(torch.equal(sgd[name], lomo[name]) for name in sgd)

    def test_no_gradient_outlives_its_turn(self, tiny_model_folder: Path, samples: list[Conversation]) -> None:
        model, _, _ = prepare(tiny_model_folder, {"name": "lomo"})
        weights = {name: weight for name, weight in model.model.named_parameters() if weight.requires_grad}
        most = 0

        def count(_: nn.Parameter) -> None:
            nonlocal most
            most = max(most, sum(weight.grad.numel() for weight in weights.values() if weight.grad is not None))

        for weight in weights.values():  # runs before LOMO's own hook, which is registered later
            weight.register_post_accumulate_grad_hook(count)
        optimizer = make_optimizer_step("lomo", OptimizerConfig([ParamGroup(weights, 0.1, 0.0)], None, model.model))

        def passes(each: Any) -> float:
            loss, _ = answer_loss(model.model, batch_of(model, samples[:2]))
            each(loss)
            return loss.item()

        optimizer.step(passes, 1.0, 0)
        assert most == max(weight.numel() for weight in weights.values())
        assert all(weight.grad is None for weight in weights.values())
        assert optimizer.state() == ({}, {})

    def test_bf16_weights_are_updated_in_float32(self) -> None:
        weight = nn.Parameter(torch.full((4,), 256.0, dtype=torch.bfloat16))
        optimizer = make_optimizer_step(
            "lomo", OptimizerConfig([ParamGroup({"w": weight}, 1.0, 0.0)], None, nn.Module())
        )
        for slope, wanted in ((0.4, 256.0), (0.6, 255.0)):  # below 256 the next bf16 numbers are 1 apart
            optimizer.step(lambda each, slope=slope: (each((weight.float() * slope).sum()), 0.0)[1], 1.0, 0)
            assert weight.tolist() == [wanted] * 4


class TestAdaLomo:
    def test_equals_adafactor(self) -> None:
        """torch's Adafactor with the same constants; it adds its epsilon elsewhere."""
        torch.manual_seed(0)
        start = {"w": torch.randn(12, 20) * 0.1, "b": torch.randn(20) * 0.1}
        ours = {name: nn.Parameter(tensor.clone()) for name, tensor in start.items()}
        theirs = {name: nn.Parameter(tensor.clone()) for name, tensor in start.items()}
        optimizer = make_optimizer_step("adalomo", OptimizerConfig([ParamGroup(ours, 0.01, 0.0)], None, nn.Module()))
        reference = torch.optim.Adafactor(theirs.values(), lr=0.01, eps=(1e-30, 1e-3), weight_decay=0.0)
        inputs = torch.randn(32, 12)

        def loss(weights: dict[str, nn.Parameter]) -> Tensor:
            return ((inputs @ weights["w"] + weights["b"]).tanh() - 1).square().mean()

        for _ in range(5):
            optimizer.step(lambda each: (each(loss(ours)), 0.0)[1], 1.0, 0)
            reference.zero_grad()
            loss(theirs).backward()
            reference.step()
        for name in start:
            assert (ours[name] - theirs[name]).abs().max() < 1e-6

    def test_its_first_step_is_of_bounded_size(self) -> None:
        """Nothing is averaged yet (the decay is 0); the root mean square of a step is at most the rate times w's."""
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(12, 20))
        before = weight.detach().clone()
        optimizer = make_optimizer_step(
            "adalomo", OptimizerConfig([ParamGroup({"w": weight}, 0.01, 0.0)], None, nn.Module())
        )
        slopes = torch.randn(12, 20) * torch.logspace(-3, 3, 20)
        optimizer.step(lambda each: (each((weight * slopes).sum()), 0.0)[1], 1.0, 0)
        step = (weight.detach() - before).square().mean().sqrt() / before.square().mean().sqrt()
        assert 0.5 * 0.01 < float(step) <= 0.01 * 1.0001

    @pytest.mark.slow
    def test_state_is_rows_and_columns(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        weight = nn.Parameter(torch.randn(30, 50))
        optimizer = make_optimizer_step(
            "adalomo", OptimizerConfig([ParamGroup({"w": weight}, 0.01, 0.0)], None, nn.Module())
        )
        optimizer.step(lambda each: (each(weight.square().sum()), 0.0)[1], 1.0, 0)
        tensors, values = optimizer.state()
        assert sum(tensor.numel() for tensor in tensors.values()) == 30 + 50
        assert values == {"steps": 1}
        model, method, recipe = prepare(tiny_model_folder, {"name": "adalomo"}, epochs=4, learning_rate=0.05)
        result = train(model, method, samples, recipe, tmp_path)
        assert result.losses[-1] < 0.8 * result.losses[0]


class TestMezo:
    @staticmethod
    def optimizer(model: Any, dtype: torch.dtype, **options: Any) -> tuple[MezoStep, dict[str, nn.Parameter]]:
        model.model.to(dtype)
        weights = {name: weight for name, weight in model.model.named_parameters() if weight.requires_grad}
        found = make_optimizer_step(
            "mezo", OptimizerConfig([ParamGroup(weights, 0.0, 0.0)], None, model.model, options)
        )
        assert isinstance(found, MezoStep)
        return found, weights

    @staticmethod
    def passes(model: Any, samples: list[Conversation]) -> Any:
        batch = batch_of(model, samples)
        if model.model.dtype != torch.float32:
            batch["pixel_values"] = batch["pixel_values"].to(model.model.dtype)

        def run(each: Any) -> float:
            loss, count = answer_loss(model.model, batch)
            each(loss)
            return (loss / count).item()

        return run

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("dtype", "exact", "drift"), [("float64", False, 1e-14), ("float32", False, 2e-6), ("bfloat16", True, 0.0)]
    )
    def test_weights_come_back(
        self, dtype: str, exact: bool, drift: float, tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        """After ten steps at rate 0: within rounding in place, bit for bit module by module (bf16's default)."""
        model, _, _ = prepare(tiny_model_folder, {"name": "mezo"})
        optimizer, weights = self.optimizer(model, getattr(torch, dtype), **({} if exact else {"exact": False}))
        assert optimizer.exact is exact
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        run = self.passes(model, samples[:1])
        for seed in range(10):
            optimizer.step(run, 1.0, seed)
        assert max(float((weight - before[name]).abs().max()) for name, weight in weights.items()) <= drift

    def test_both_ways_try_the_same_weights(self, tiny_model_folder: Path, samples: list[Conversation]) -> None:
        slopes = []
        for exact in (False, True):
            model, _, _ = prepare(tiny_model_folder, {"name": "mezo"})
            optimizer, _ = self.optimizer(model, torch.float64, exact=exact)
            optimizer.step(self.passes(model, samples[:2]), 1.0, 7)
            slopes.append(optimizer.log[0][1])
        assert slopes[0] == pytest.approx(slopes[1], rel=1e-9)

    def test_the_slope_approaches_the_gradient_along_z(
        self, tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        model, _, _ = prepare(tiny_model_folder, {"name": "mezo"})
        _, weights = self.optimizer(model, torch.float64)
        loss, count = answer_loss(model.model.eval(), batch_of(model, samples[:2]))
        (loss / count).backward()
        wanted = sum(float((direction(3, name, weight) * weight.grad).sum()) for name, weight in weights.items())
        errors = []
        for epsilon in (1e-2, 1e-3, 1e-4):
            optimizer, _ = self.optimizer(model, torch.float64, epsilon=epsilon, exact=False)
            optimizer.step(self.passes(model, samples[:2]), 1.0, 3)
            errors.append(abs(optimizer.log[0][1] - wanted) / abs(wanted))
        assert errors[2] < 1e-3
        assert errors[2] < errors[1] < errors[0]

    @pytest.mark.slow
    @pytest.mark.parametrize(("dtype", "exact"), [("float32", False), ("bfloat16", True)])
    def test_memory_is_that_of_inference_and_one_tensor(
        self, dtype: str, exact: bool, tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        """Bytes of everything allocated and alive, at most; module by module, also that module's moved weights."""
        model, _, _ = prepare(tiny_model_folder, {"name": "mezo"})
        optimizer, weights = self.optimizer(model, getattr(torch, dtype))
        assert optimizer.exact is exact
        run = self.passes(model, samples[:1])
        largest = max(weight.numel() * weight.element_size() for weight in weights.values())
        with torch.no_grad(), Alive() as inference:
            run(lambda share: None)
        with Alive() as trial:
            optimizer.step(run, 1.0, 0)
        with Alive() as update:
            optimizer.step(lambda each: 0.0, 1.0, 0)
        assert trial.most <= inference.most + (2 if exact else 1) * largest
        assert update.most <= 1.01 * largest + 1000

    def test_nothing_is_kept_for_a_backward_pass(self, tiny_model_folder: Path, samples: list[Conversation]) -> None:
        model, _, _ = prepare(tiny_model_folder, {"name": "mezo"})
        optimizer, _ = self.optimizer(model, torch.float32)
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
            optimizer.step(self.passes(model, samples[:1]), 1.0, 0)
        assert not kept

    @pytest.mark.slow
    def test_a_run_is_replayed_from_its_log(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        spec = {"name": "mezo", "parts": ["projector"], "epsilon": 1e-3}
        settings = {"learning_rate": 1e-4, "epochs": 3}
        after = trained(tmp_path, tiny_model_folder, samples, spec, **settings)
        newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
        log = json.loads((newest / "state.json").read_text())["optimizer"]["log"]
        assert len(log) == 6
        model, _, _ = prepare(tiny_model_folder, spec, **settings)
        weights = {name: weight for name, weight in model.model.named_parameters() if weight.requires_grad}
        replay([ParamGroup(weights, 1e-4, 0.0)], log)
        assert max(float((weight - after[name]).abs().max()) for name, weight in weights.items()) < 2e-6

    @pytest.mark.slow
    def test_it_learns(self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
        """Slowly, as it does: on the head alone, which has few directions that matter."""
        model, method, recipe = prepare(
            tiny_model_folder,
            {"name": "mezo", "parts": ["head"]},
            epochs=40, learning_rate=1e-3, schedule="constant", batch_size=8,
        )  # fmt: skip
        result = train(model, method, samples, recipe, tmp_path)
        assert sum(result.losses[-5:]) < sum(result.losses[:5])


class TestLisa:
    def test_only_those_awake_move(self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
        spec = {"name": "lisa", "layers": 1, "interval": 100}
        model, method, recipe = prepare(tiny_model_folder, spec)
        before = snapshot(model)
        train(model, method, samples, recipe, tmp_path)
        moved = {name for name, tensor in snapshot(model).items() if not torch.equal(tensor, before[name])}
        layers = {name.split(".")[3] for name in moved if ".layers." in name}
        assert len(layers) == 1
        assert "model.language_model.embed_tokens.weight" in moved
        assert "lm_head.weight" in moved
        assert not any("vision" in name or "projector" in name for name in moved)

    @pytest.mark.slow
    def test_others_wake_and_sleepers_keep_no_state(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        spec = {"name": "lisa", "layers": 1, "interval": 2}
        model, method, recipe = prepare(tiny_model_folder, spec, epochs=8, checkpoint_every=1e-9, keep_checkpoints=99)
        train(model, method, samples, recipe, tmp_path)
        awake = set()
        for place in (tmp_path / "checkpoints").glob("step-*"):
            values = json.loads((place / "state.json").read_text())
            if values["step"] == 0:
                continue
            awake.add(tuple(values["method"][0]["awake"]))
            with safe_open(place / "optimizer.safetensors", "pt") as file:
                layers = {int(name.split(".")[3]) for name in file.keys() if ".layers." in name}  # noqa: SIM118
            assert layers == set(values["method"][0]["awake"])
        assert awake == {(0,), (1,)}


@pytest.mark.parametrize(
    ("settings", "method", "words"),
    [
        ({"micro_batch_size": 2, "batch_size": 8}, {"name": "lomo"}, "cannot be accumulated"),
        ({"optimizer": "adalomo", "micro_batch_size": 1}, FULL, "cannot be accumulated"),
        ({"optimizer": "mezo", "max_grad_norm": 0.5}, FULL, "no gradient norm"),
        ({"max_grad_norm": 0.5}, {"name": "adalomo"}, "no gradient norm"),
        ({"micro_batch_size": 1}, {"name": "adalomo"}, "cannot be accumulated"),
        ({"optimizer": "sgd"}, {"name": "mezo"}, "brings its own optimizer"),
        ({"optimizer": "adamm"}, FULL, "did you mean `adamw`"),
    ],
)
def test_refused_before_a_model_is_opened(settings: dict[str, Any], method: dict[str, Any], words: str) -> None:
    chosen = make_method(small_recipe(method))
    with pytest.raises(RecipeError, match=words):
        check_settings(Train(**settings), chosen.optimizer)
