"""Methods: what they train, what they leave alone, and that what is saved is what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fixtures.method_cases import CASES, INITIAL, LORA, ROUNDED
from fixtures.small_job import (
    difference,
    exact_logits,
    logits,
    make_samples,
    open_small,
    prepare,
    shake,
    small_recipe,
    snapshot,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM

from mllm_tailor.core.errors import ModelError, RecipeError
from mllm_tailor.core.sample import Sample
from mllm_tailor.methods import check_mergeable, make_method, merge
from mllm_tailor.methods.adapter_metadata import write_metadata
from mllm_tailor.methods.method import injected_adapters
from mllm_tailor.models import collate, encode, load_meta_model, load_model, save_model
from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save
from mllm_tailor.run.pipeline import check_model
from mllm_tailor.run.resolve import resolve
from mllm_tailor.training.objectives.cross_entropy import answer_loss

FROM_ELSEWHERE = {"prompt", "prefix in one softmax"}  # what stands in front is seen from the first
UNMERGEABLE = {"series", "parallel", "houlsby", "pfeiffer", "prefix", "prefix in one softmax", "prompt"}
STILL = (
    ".lora_A.",
    ".vera_lambda_d.",
    ".bottleneck_down.",
    ".prefix_key",
    ".prefix_value",
)  # behind a zero, so without a gradient in the first step


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_samples(tmp_path_factory.mktemp("pictures"), 3)


@pytest.fixture(scope="module")
def tied_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tied"
    tokenizer = build_tokenizer()
    model = build_internvl(
        tokenizer, vision_width=32, vision_layers=1, text_width=64, text_layers=1, image_size=56, head_width=16
    )
    save(model, build_processor(tokenizer, 56, max_tiles=4), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_method_from_beginning_to_end(
    case: str, tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    """Untouched output at first; one step moves exactly the declared weights; saved = trained; merged = trained."""
    recipe = small_recipe(CASES[case])
    method = make_method(recipe)
    model = open_small(tiny_model_folder, method)
    before, exactly = logits(model, samples), exact_logits(model, samples)
    expected = method.num_trainable_parameters(model)
    applied = method.apply(model)
    assert sum(applied.counts.values()) == expected
    assert applied.total == 193_120
    changed = difference(logits(model, samples), before)
    if case in INITIAL:
        changed = difference(exact_logits(model, samples), exactly)
    assert changed > 1e-4 if case in FROM_ELSEWHERE else changed <= INITIAL.get(case, 0.0)

    frozen = snapshot(model)
    weights = {name: weight for name, weight in model.model.named_parameters() if weight.requires_grad}
    assert tuple(weights) == applied.trainable
    _one_step(model, samples)
    after = snapshot(model)
    moved = {name for name in after if not torch.equal(after[name], frozen[name])}
    assert moved <= set(weights)
    still = (*STILL, ".lora_B.") if case == "adalora" else STILL  # there both halves stand behind the zeros of E
    assert all(any(half in name for half in still) for name in set(weights) - moved)

    shake(model)
    trained, exactly = logits(model, samples), exact_logits(model, samples)
    if injected_adapters(model)[0].config is not None:
        with pytest.raises(ModelError, match="merge it first"):
            save_model(model, tmp_path / "unmerged")
    method.save(model, tmp_path / "adapter")
    again = open_small(tiny_model_folder, method)
    method.load(again, tmp_path / "adapter")
    if case in ROUNDED:
        assert difference(exact_logits(again, samples), exactly) <= ROUNDED[case]
    else:
        assert torch.equal(logits(again, samples), trained)
    if case in UNMERGEABLE:
        with pytest.raises(ModelError, match="cannot be merged"):
            merge(again)
        return
    merge(again)
    assert difference(exact_logits(again, samples), exactly) <= 1e-6
    assert not any(isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) for module in again.model.modules())
    save_model(again, tmp_path / "merged")
    plain = load_model(tmp_path / "merged", dtype="float32")
    assert difference(exact_logits(plain, samples), exactly) <= 1e-6


def _one_step(model: Any, samples: list[Sample]) -> None:
    weights = [weight for weight in model.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    inputs = collate([encode(sample, model) for sample in samples], model, side="right")
    summed, count = answer_loss(model.model, inputs)
    (summed / count).backward()
    optimizer.step()


@pytest.mark.slow
def test_counts_follow_the_formulae(tiny_model_folder: Path) -> None:
    """language: width 64, 4 heads of 16, mlp 176, 2 layers; rank * (in + out) each, DoRA one more an output."""
    linears = 2 * (4 * (64 + 64) + 3 * (64 + 176))
    outputs = 2 * (4 * 64 + 2 * 176 + 64)
    for spec, count in [
        (LORA, 4 * linears),
        ({**LORA, "rank": 7}, 7 * linears),
        ({**LORA, "dora": True}, 4 * linears + outputs),
        ({**LORA, "targets": ["q_proj", "v_proj"]}, 4 * 2 * 2 * 128),
        ({**LORA, "last_layers": 1}, 4 * linears // 2),
        ({"name": "ia3"}, 2 * (64 + 64 + 176)),  # keys, values, and what enters the MLP's second layer
    ]:
        method = make_method(small_recipe(spec))
        model = open_small(tiny_model_folder, method)
        assert method.num_trainable_parameters(model) == count
        assert method.apply(model).counts == {"vision": 0, "projector": 0, "language": count, "head": 0}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (
            {**LORA, "targets": ["q_proj", "v_proj"]},
            ["language: 2,048 weights in model.language_model.layers.0-1.self_attn.q_proj, "
             "model.language_model.layers.0-1.self_attn.v_proj"],
        ),
        ({"name": "norms", "parts": ["language"], "last_layers": 1},
         ["language: 128 weights in model.language_model.layers.1.input_layernorm, "
          "model.language_model.layers.1.post_attention_layernorm"]),
        ({"name": "full", "parts": ["projector"]},
         ["projector: 12,672 weights in model.multi_modal_projector.layer_norm, "
          "model.multi_modal_projector.linear_1, model.multi_modal_projector.linear_2"]),
        ({"name": "full", "parts": {"language": "freeze", "head": {}}}, ["head: 17,216 weights in lm_head"]),
    ],
)  # fmt: skip
def test_what_moves_is_told_with_count_and_names(spec: Any, wanted: list[str], tiny_model_folder: Path) -> None:
    method = make_method(small_recipe(spec))
    assert method.apply(open_small(tiny_model_folder, method)).lines() == wanted


def test_pefomed_count() -> None:
    """Rank 64 on q and v of Llama-2-7B, and one projector: the 56.63 M of arXiv 2401.02797."""
    assert 32 * 2 * 64 * (4096 + 4096) + 5632 * 4096 + 4096 == 56_627_200


def test_rslora_scale(tiny_model_folder: Path) -> None:
    model, _, _ = prepare(tiny_model_folder, {"name": "lora", "rank": 8, "alpha": 16, "rslora": True})
    layer = model.model.get_submodule("model.language_model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == pytest.approx(16 / 8**0.5)


def test_targets_are_exact_names(tiny_model_folder: Path) -> None:
    """The pattern PEFT gets matches the language model's layers and no namesake in the vision tower."""
    model, _, _ = prepare(tiny_model_folder, {**LORA, "targets": ["q_proj"]})
    (attached,) = injected_adapters(model)
    assert attached.tuner.targeted_module_names == [
        f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in range(2)
    ]
    assert attached.config is not None
    assert "vision" not in str(attached.config.target_modules)


def test_plain_peft_opens_what_is_saved(tiny_model_folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    model, method, _ = prepare(tiny_model_folder, {**LORA, "parts": ["vision", "language"]})
    shake(model)
    method.save(model, tmp_path)
    wanted = logits(model, samples)
    base = AutoModelForMultimodalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    model.model = peft.PeftModel.from_pretrained(base, str(tmp_path))
    assert torch.equal(logits(model, samples), wanted)


def test_a_published_style_adapter_goes_on_the_unpacked_base(
    tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    model, method, _ = prepare(tiny_model_folder, {"name": "qlora", "rank": 4})
    shake(model)
    method.save(model, tmp_path)
    unpacked = load_model(tiny_model_folder, dtype="float32")
    with pytest.raises(ModelError, match="quantize=nf4"):
        method.load(unpacked, tmp_path)
    method.load(unpacked, tmp_path, unquantised=True)
    assert not torch.equal(logits(unpacked, samples), logits(model, samples))  # the base's rounding error is missing


@pytest.mark.slow
def test_a_sum_packed_again_is_what_packing_it_gives(
    tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    model, method, _ = prepare(tiny_model_folder, {"name": "qlora", "rank": 4})
    shake(model)
    method.save(model, tmp_path / "adapter")
    trained = exact_logits(model, samples)
    exact, again = (open_small(tiny_model_folder, method) for _ in range(2))
    for one, how in ((exact, "dequantised"), (again, "repacked")):
        method.load(one, tmp_path / "adapter")
        merge(one, how)
        save_model(one, tmp_path / how)
    packed = load_model(tmp_path / "dequantised", dtype="float32", quantize="nf4", quantize_skip=method.quantize_skip)
    for module in packed.model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
    assert difference(logits(packed, samples), logits(again, samples)) < 1e-5
    assert difference(exact_logits(exact, samples), trained) < 1e-6
    assert difference(exact_logits(again, samples), trained) > 1e-3
    with pytest.raises(ModelError, match="not quantised to 4 bits"):
        merge(exact, "repacked")


def test_qlora_packs_only_its_parts_into_half_a_byte_a_weight(tiny_model_folder: Path) -> None:
    model, _, _ = prepare(tiny_model_folder, {"name": "qlora", "rank": 4})
    for name, weight in model.model.named_parameters():
        packed = name.endswith("base_layer.weight")
        assert (weight.dtype == torch.uint8) == packed == ("language_model.layers" in name and packed)
        if packed:
            assert weight.numel() == weight.quant_state.shape.numel() / 2


BEFORE_LOADING = [
    ({"name": "lora", "rank": 65}, "`method.rank` 65 is above the width 64 .* choose 64 or less"),
    ({"name": "adalora", "rank": 66}, "`method.rank` 66 is above the width 64"),
    ({"name": "galore", "rank": 64}, "`method.rank` 64: the widest trained weight has 64 .* or method full"),
    ({"name": "oft", "block": 24}, "`method.block` 24 does not divide"),
    ({"name": "lora", "parts": ["audio"]}, "`method.parts`: this model has no audio"),
    ({"name": "lora", "targets": ["q_porj"]}, "`method.targets`: .* did you mean `q_proj`"),
    ({"name": "lora", "parts": {"vision": {"rank": 33}}}, "`method.rank` 33 is above the width 32"),
]


class TestBeforeLoading:
    """The shapes of a checkpoint are enough to refuse a method, and to count what any would train."""

    @pytest.mark.parametrize(("spec", "words"), BEFORE_LOADING)
    def test_refusals(self, spec: dict[str, Any], words: str, tiny_model_folder: Path) -> None:
        skeleton = load_meta_model(tiny_model_folder)
        with pytest.raises((ModelError, RecipeError), match=words):
            make_method(small_recipe(spec)).num_trainable_parameters(skeleton)

    def test_a_tied_head_alone(self, tied_model_folder: Path) -> None:
        with pytest.raises(ModelError, match="tied head"):
            make_method(small_recipe({"name": "full", "parts": ["head"]})).num_trainable_parameters(
                load_meta_model(tied_model_folder)
            )

    def test_a_run_refuses_before_it_opens_the_model(
        self, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def opened(*_: Any, **__: Any) -> None:
            raise AssertionError("the weights were loaded")

        monkeypatch.setattr("mllm_tailor.run.predict.load_model", opened)
        recipe = small_recipe({"name": "lora", "rank": 65})
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": str(tiny_model_folder)})})
        with pytest.raises(RecipeError, match="above the width 64"):
            check_model(resolve(recipe))

    @pytest.mark.slow
    @pytest.mark.parametrize("case", CASES)
    def test_counts_are_those_of_the_whole_model(self, case: str, tiny_model_folder: Path) -> None:
        method = make_method(small_recipe(CASES[case]))
        counted = method.num_trainable_parameters(load_meta_model(tiny_model_folder))
        assert counted == method.num_trainable_parameters(
            open_small(tiny_model_folder, make_method(small_recipe("lora")))
        )

    @pytest.mark.parametrize("case", sorted(UNMERGEABLE))
    def test_merging(self, case: str) -> None:
        with pytest.raises(ModelError, match=r"cannot be merged into the weights .* or train with lora"):
            check_mergeable(make_method(small_recipe(CASES[case])))


class TestRefusals:
    """Adapters on the wrong base, and recipes that make no sense."""

    def test_another_base(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model, method, _ = prepare(tiny_model_folder, LORA)
        method.save(model, tmp_path / "adapter")
        other = tmp_path / "other"
        shutil.copytree(tiny_model_folder, other)
        tensors = load_file(other / "model.safetensors")
        name = next(iter(tensors))
        tensors[name] = tensors[name] + 1
        save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match="weights differ"):
            method.load(load_model(other, dtype="float32"), tmp_path / "adapter")

    @pytest.mark.slow
    @pytest.mark.parametrize("fault", ["no weights", "cut", "a flipped bit", "no config", "no fit", "not an adapter"])
    def test_damaged_adapters(self, fault: str, tiny_model_folder: Path, tmp_path: Path) -> None:
        model, method, _ = prepare(tiny_model_folder, LORA)
        method.save(model, tmp_path)
        weights = tmp_path / "adapter_model.safetensors"
        if fault == "no weights":
            weights.unlink()
        elif fault == "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif fault == "a flipped bit":
            content = bytearray(weights.read_bytes())
            content[-100] ^= 1
            weights.write_bytes(content)
        elif fault == "no config":
            (tmp_path / "adapter_config.json").unlink()
        elif fault == "no fit":
            (tmp_path / "tailor.json").write_text("{")
        else:
            (tmp_path / "tailor.json").unlink()
        with pytest.raises(ModelError, match=str(tmp_path)):
            method.load(open_small(tiny_model_folder, method), tmp_path)

    @pytest.mark.slow
    def test_adapter_of_another_shape(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        model, method, _ = prepare(tiny_model_folder, LORA)
        method.save(model, tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
        with pytest.raises(ModelError, match=r"adapter_config.json: changed since"):
            method.load(open_small(tiny_model_folder, method), tmp_path)
        metadata = json.loads((tmp_path / "tailor.json").read_text())
        write_metadata(tmp_path, metadata["base"], {"adapters": metadata["adapters"], "weights": False})
        with pytest.raises(ModelError, match="does not fit"):
            method.load(open_small(tiny_model_folder, method), tmp_path)

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ({"name": "lorra"}, "did you mean `lora`"),
            ({"name": "lora", "rnak": 4}, "did you mean `rank`"),
            ({"name": "lora", "parts": ["languag"]}, "did you mean `language`"),
            ({"name": "lora", "parts": {"vision": {"method": "lora", "rnk": 2}}}, "parts.vision.*`rank`"),
            ({"name": "lora", "rank": 0}, "greater than or equal to 1"),
            ({"name": "freeze"}, "nothing would be trained"),
            ({"name": "lora", "parts": ["vision", "vision"]}, "named twice"),
            (
                {"name": "lora", "parts": {"vision": {}, "language": {"method": "lomo"}}},
                "lomo is an optimizer of every trained weight, so lora .* freeze the others",
            ),
            (
                {"name": "galore", "rank": 8, "parts": {"vision": {"rank": 4}, "language": {}}},
                "with the same settings for all parts",
            ),
        ],
    )
    def test_before_any_model_is_opened(self, spec: dict[str, Any], words: str) -> None:
        with pytest.raises(RecipeError, match=words):
            make_method(small_recipe(spec))

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ({"name": "lora", "rank": 65}, "above the width 64"),
            ({"name": "lora", "targets": ["q_porj"]}, "did you mean `q_proj`"),
            ({"name": "lora", "parts": ["audio"]}, "this model has no audio"),
        ],
    )
    def test_that_need_the_model(self, spec: dict[str, Any], words: str, tiny_model_folder: Path) -> None:
        method = make_method(small_recipe(spec))
        with pytest.raises((ModelError, RecipeError), match=words):
            method.apply(open_small(tiny_model_folder, method))


class TestTiedHead:
    """A checkpoint whose output head and input embeddings are one tensor."""

    def test_an_adapted_head_leaves_the_embeddings_alone_when_merged(
        self, tied_model_folder: Path, samples: list[Sample], tmp_path: Path
    ) -> None:
        model, _, _ = prepare(tied_model_folder, {**LORA, "parts": ["head"]})
        shake(model)
        embeddings = model.model.get_input_embeddings().weight.detach().clone()
        trained = exact_logits(model, samples)
        merge(model)
        assert torch.equal(model.model.get_input_embeddings().weight, embeddings)
        save_model(model, tmp_path)
        assert difference(exact_logits(load_model(tmp_path, dtype="float32"), samples), trained) <= 1e-6

    def test_it_cannot_be_trained_alone(self, tied_model_folder: Path) -> None:
        with pytest.raises(ModelError, match="tied head"):
            prepare(tied_model_folder, {"name": "full", "parts": ["head"]})
