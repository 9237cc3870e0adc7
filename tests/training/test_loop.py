"""The training loop: order, schedule, loss, accumulation, cached features, budgets, interruption."""

from __future__ import annotations

import itertools
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_job import batch_of, make_conversations, prepare, shake, snapshot, train
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mllm_tailor.core.conversation import Conversation, as_conversation
from mllm_tailor.core.errors import RunError
from mllm_tailor.models import encode
from mllm_tailor.models.vision_cache import VisionFeatureCache
from mllm_tailor.training import Interrupted, ObjectiveInputs, TrainingEvent, TrainResult, loop
from mllm_tailor.training.augment import augment_sample
from mllm_tailor.training.batches import LiveBatches
from mllm_tailor.training.log import keep_rows
from mllm_tailor.training.objectives.cross_entropy import answer_loss, count_labels
from mllm_tailor.training.optim.schedule import rate_factor
from mllm_tailor.training.sampler import BatchSchedule, micro_batches, step_seed
from mllm_tailor.training.vision_cache import CachedBatches, as_inputs, can_cache

LORA = {"name": "lora", "rank": 4}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return make_conversations(tmp_path_factory.mktemp("pictures"))


def run(
    folder: Path,
    model_folder: Path,
    samples: list[Conversation],
    method: Any = LORA,
    evaluate: Any = None,
    **settings: Any,
) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    """Train from the beginning (or from what `folder` holds); the result and all weights after it."""
    model, chosen, recipe = prepare(model_folder, method, **settings)
    result = train(model, chosen, samples, recipe, folder, evaluate=evaluate)
    return result, snapshot(model)


class TestOrder:
    @given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**40), st.integers(0, 3))
    def test_every_sample_occurs_once_an_epoch(self, count: int, batch: int, seed: int, epoch: int) -> None:
        course = BatchSchedule(count, batch, 4, seed)
        steps = range(epoch * course.steps_per_epoch, (epoch + 1) * course.steps_per_epoch)
        seen = [number for step in steps for number in course.samples(step)]
        assert sorted(seen) == list(range(count))
        assert all(len(course.samples(step)) == batch for step in steps[:-1])

    def test_epochs_and_seeds_differ(self) -> None:
        orders = {BatchSchedule(50, 50, 2, seed).samples(epoch) for seed in (0, 1) for epoch in (0, 1)}
        assert len(orders) == 4
        assert len({step_seed(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in (0, 1)}) == 8

    @given(
        st.lists(st.integers(1, 500), min_size=1, max_size=40),
        st.one_of(st.none(), st.integers(1, 8)),
        st.integers(1, 2000),
    )
    def test_passes_hold_every_sample_and_keep_their_limits(
        self, tokens: list[int], most: int | None, budget: int
    ) -> None:
        numbers = list(range(100, 100 + len(tokens)))
        passes = micro_batches(numbers, tokens, max_samples=most, token_budget=budget)
        assert sorted(number for one in passes for number in one) == numbers
        for one in passes:
            padded = len(one) * max(tokens[number - 100] for number in one)
            assert len(one) <= most if most is not None else (padded <= budget or len(one) == 1)

    def test_a_pass_holds_samples_of_like_length_where_padding_costs(self) -> None:
        assert micro_batches(range(4), [1072, 546, 1057, 525], max_samples=None, token_budget=4096) == [(0, 2, 1), (3,)]
        passes = micro_batches(range(4), [1072, 546, 1057, 525], max_samples=None, token_budget=4096, max_padding=32)
        assert passes == [(0, 2), (1, 3)]
        asked = micro_batches(range(3), [90, 10, 50], max_samples=3, token_budget=0, max_padding=0)
        assert asked == [(0, 2, 1)]

    def test_marks_of_evaluation(self) -> None:
        assert BatchSchedule(10, 4, 2.5, 0).ends(1.0) == {3, 6, 8}
        assert BatchSchedule(10, 4, 1, 0).ends(0.5) == {2, 3}
        assert BatchSchedule(4, 4, 2, 0).ends(0.1) == {1, 2}


class TestSchedule:
    def test_shapes(self) -> None:
        assert [rate_factor(step, 4, 0.5, "constant") for step in range(4)] == [0.5, 1, 1, 1]
        cosine = [rate_factor(step, 100, 0.1) for step in range(100)]
        assert cosine[9] == cosine[10] == 1.0
        assert cosine[55] == pytest.approx(0.5)
        assert all(later <= earlier for earlier, later in itertools.pairwise(cosine[10:]))
        assert 0 < cosine[99] < 0.001

    @given(st.integers(1, 500), st.floats(0, 0.999), st.sampled_from(["cosine", "linear", "constant"]))
    def test_always_between_0_and_1(self, steps: int, warmup: float, shape: Any) -> None:
        assert all(0 < rate_factor(step, steps, warmup, shape) <= 1 for step in range(steps))


class TestLoss:
    def test_equals_the_loss_over_all_logits(self, tiny_model_folder: Path, samples: list[Conversation]) -> None:
        model, _, _ = prepare(tiny_model_folder, LORA)
        shake(model)
        batch = batch_of(model, samples[:4])
        full = model.model(**batch).loss  # transformers: all logits, mean over labelled tokens
        seen = []
        handle = model.model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
        summed, count = answer_loss(model.model, batch)
        handle.remove()
        assert count == sum(count_labels(row) for row in batch["labels"])
        assert seen == [(1, count, 269)]  # not (4, length, 269)
        assert abs((summed / count).item() - full.item()) <= 1e-6
        summed.backward()

    def test_prompts_do_not_matter_where_they_carry_no_loss(
        self, tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        """No sample sees another one: changing the second leaves the first one's gradient exactly as it was."""
        model, _, _ = prepare(tiny_model_folder, LORA)
        shake(model)
        alone, other = batch_of(model, samples[:2]), batch_of(model, samples[:2])
        answer = int((other["labels"][1] != -100).nonzero()[0])
        other["input_ids"][1, answer - 20 : answer] = 65
        for batch in (alone, other):
            batch["labels"][1] = -100
        losses = [answer_loss(model.model, batch)[0].item() for batch in (alone, other)]
        assert losses[0] == losses[1]

    def test_nothing_is_kept_below_the_lowest_trained_layer(
        self, tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        model, _, _ = prepare(tiny_model_folder, LORA)
        needed = []
        for part in ("vision_tower", "multi_modal_projector"):
            module = model.model.get_submodule(f"model.{part}")
            module.register_forward_hook(lambda _, __, out: needed.append(getattr(out, "last_hidden_state", out)))
        answer_loss(model.model, batch_of(model, samples[:2]))[0].backward()
        assert [found.requires_grad for found in needed] == [False, False]


class TestAccumulation:
    @pytest.mark.slow
    def test_small_passes_equal_the_big_batch(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        """4 x 1, 2 + 2 and 4 at once: answers of different lengths weigh the same in each."""
        mixed = [replace(sample, answer=sample.answer + "!" * 7 * int(sample.id)) for sample in samples]
        found = [
            run(
                tmp_path / str(size),
                tiny_model_folder,
                mixed,
                optimizer="sgd",
                micro_batch_size=size,
                max_grad_norm=None,
            )
            for size in (1, 2, 4)
        ]
        for result, weights in found[:2]:
            assert result.losses == pytest.approx(found[2][0].losses, rel=1e-6)
            for name, weight in weights.items():
                assert (weight - found[2][1][name]).abs().max() <= 1e-6, name

    @pytest.mark.slow
    def test_out_of_memory_is_answered_with_smaller_passes(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mllm_tailor.training.objectives import cross_entropy

        def stingy(network: Any, batch: Any) -> Any:
            if len(batch["input_ids"]) > 1:
                raise torch.OutOfMemoryError("pretended")
            return answer_loss(network, batch)

        wanted, _ = run(tmp_path / "plenty", tiny_model_folder, samples, optimizer="sgd")
        monkeypatch.setattr(cross_entropy, "answer_loss", stingy)
        found, _ = run(tmp_path / "little", tiny_model_folder, samples, optimizer="sgd")
        assert found.losses == pytest.approx(wanted.losses, rel=1e-5)

    @pytest.mark.slow
    def test_when_not_even_one_sample_fits(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mllm_tailor.training.objectives import cross_entropy

        def full(*_: Any) -> Any:
            raise torch.OutOfMemoryError("pretended")

        monkeypatch.setattr(cross_entropy, "answer_loss", full)
        with pytest.raises(RunError, match="fewer tiles"):
            run(tmp_path, tiny_model_folder, samples)


class TestCachedFeatures:
    @pytest.mark.slow
    def test_equal_live_ones_bit_for_bit(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        """The same group of pictures in one pass, live and cached: inputs, loss and gradient are the same bits."""
        model, _, _ = prepare(tiny_model_folder, LORA)
        shake(model)
        assert can_cache(model, samples, augment=False)
        live = LiveBatches(model, samples, "answer", None).batch(range(8), 0)
        cached = CachedBatches(model, samples, "answer", tmp_path, bf16=False).batch(range(8), 0)
        assert torch.equal(live["input_ids"], cached["input_ids"])
        assert torch.equal(live["labels"], cached["labels"])
        gradients = []
        for batch in (live, as_inputs(cached)):
            model.model.zero_grad()
            loss, _ = answer_loss(model.model, batch)
            loss.backward()
            gradients.append([loss, *(weight.grad for weight in model.model.parameters() if weight.requires_grad)])
        assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))

    def test_a_damaged_or_outdated_file_is_made_again(self, tiny_model_folder: Path, tmp_path: Path) -> None:
        own = make_conversations(tmp_path / "pictures")
        model, _, _ = prepare(tiny_model_folder, LORA)
        cache = tmp_path / "cache"
        first = CachedBatches(model, own, "answer", cache, bf16=False).batch([0, 9], 0)
        files = sorted(cache.rglob("*.safetensors"))
        assert len(files) == 2 * len(own)  # ids and labels, and features
        raw = bytearray(files[0].read_bytes())
        raw[-1] ^= 1
        files[0].write_bytes(raw)
        untouched = files[1].stat().st_mtime_ns
        again = CachedBatches(model, own, "answer", cache, bf16=False).batch([0, 9], 0)
        assert torch.equal(first["image_features"], again["image_features"])
        assert files[1].stat().st_mtime_ns == untouched
        Image.new("RGB", (60, 80), "black").save(own[0].media[0].path)
        changed = CachedBatches(model, own, "answer", cache, bf16=False).batch([0, 9], 0)
        assert not torch.equal(first["image_features"], changed["image_features"])

    def test_questions_about_one_picture_see_it_once(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        """Twenty questions, ten apart, about ten pictures and two about none: ten pictures pass the tower."""
        model, _, _ = prepare(tiny_model_folder, LORA)
        raw = [sample.sample for sample in samples]
        asked = [replace(raw[n % 10], id=f"{n}", prompt=f"Question {n}?", answer=f"{n}") for n in range(20)]
        asked += [replace(raw[0], id=f"text {n}", media=()) for n in range(2)]
        conversations = [as_conversation(sample) for sample in asked]
        tiles: list[int] = []
        tower = model.model.get_submodule("model.vision_tower")
        tower.register_forward_pre_hook(
            lambda _, args, kwargs: tiles.append(len(kwargs.get("pixel_values", *args[:1]))), with_kwargs=True
        )
        feed = CachedBatches(model, conversations, "answer", tmp_path, bf16=False)
        once = sum(len(encode(sample, model).media["pixel_values"]) for sample in samples[:10])
        assert sum(tiles) == once and len(tiles) == 10  # a processor looks at one after another
        assert len(list(tmp_path.glob("features-*.safetensors"))) == 10
        numbers = [3, 13, 20, 0, 19]
        live = LiveBatches(model, asked, "answer", None).batch(numbers, 0)
        from_disk = CachedBatches(model, conversations, "answer", tmp_path, bf16=False)
        assert len(tiles) == 10
        from_disk.cache = VisionFeatureCache(0, tmp_path)
        for source in (feed, from_disk):
            cached = as_inputs(source.batch(numbers, 0))
            assert torch.equal(live["input_ids"], cached["input_ids"])
            assert torch.equal(live["labels"], cached["labels"])
            losses = [answer_loss(model.model, batch)[0].item() for batch in (live, cached)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-6)

    @pytest.mark.parametrize("parts", [["vision", "language"], ["projector"]])
    def test_not_where_the_vision_side_is_trained(
        self, parts: list[str], tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        model, _, _ = prepare(tiny_model_folder, {**LORA, "parts": parts})
        assert not can_cache(model, samples, augment=False)

    @pytest.mark.slow
    def test_training_uses_them_and_clears_them(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, method, recipe = prepare(tiny_model_folder, LORA, epochs=3)
        tower = model.model.get_submodule("model.vision_tower")
        calls = []
        tower.register_forward_hook(lambda *_: calls.append(1))
        train(model, method, samples, recipe, tmp_path)
        assert len(calls) == len(samples)  # in three epochs
        assert not (tmp_path / "cache").exists()


class TestAugmentation:
    def test_a_pure_function_of_seed_epoch_and_sample(self, samples: list[Conversation]) -> None:
        first, again = (augment_sample(samples[0], 1, 2) for _ in range(2))
        assert first.media[0].data == again.media[0].data
        others = {augment_sample(samples[0], seed, epoch).media[0].data for seed, epoch in ((1, 3), (2, 2))}
        assert len(others | {first.media[0].data}) == 3
        assert first.answer == samples[0].answer

    @pytest.mark.slow
    def test_in_training(self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
        plain, _ = run(tmp_path / "plain", tiny_model_folder, samples)
        changed, _ = run(tmp_path / "changed", tiny_model_folder, samples, augment=True)
        assert plain.losses != changed.losses


class TestLoop:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "optimizer", ["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "sgd", "muon"]
    )
    def test_the_loss_falls(
        self, optimizer: str, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        rate = 0.5 if optimizer == "sgd" else 1e-2
        result, _ = run(tmp_path, tiny_model_folder, samples, {"name": "full"}, optimizer=optimizer, learning_rate=rate)
        assert result.steps == 6
        assert result.losses[-1] < 0.9 * result.losses[0]

    def test_learning_rates_by_part(self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
        """A part with a rate of its own moves by it: plain gradient descent shows the ratio."""

        def moved(rate: float) -> dict[str, float]:
            method = {"name": "full", "parts": {"projector": {"learning_rate": rate}, "language": {}}}
            model, chosen, recipe = prepare(
                tiny_model_folder, method, optimizer="sgd", epochs=0.3, learning_rate=1e-3, max_grad_norm=None
            )
            before = snapshot(model)
            train(model, chosen, samples, recipe, tmp_path / str(rate))
            after = snapshot(model)
            return {name: float((after[name] - before[name]).norm()) for name in after}

        slow, fast = moved(1e-3), moved(1e-2)
        for name in slow:
            expected = 10 if "projector" in name else 1
            if slow[name] > 1e-6:
                assert fast[name] / slow[name] == pytest.approx(expected, rel=0.02), name

    @pytest.mark.slow
    @pytest.mark.parametrize("lower_is_better", [False, True])
    def test_the_best_weights_are_kept(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path, lower_is_better: bool
    ) -> None:
        model, method, recipe = prepare(tiny_model_folder, LORA, epochs=3)
        sign = -1 if lower_is_better else 1
        scores = iter([sign * 3.0, sign * 7.0, sign * 5.0])
        seen: list[dict[str, torch.Tensor]] = []

        def evaluate() -> dict[str, float]:
            assert not model.model.training
            seen.append(snapshot(model))
            return {"fuzzy": next(scores), "exact": 0.0}

        result = train(model, method, samples, recipe, tmp_path, evaluate=evaluate, lower_is_better=lower_is_better)
        assert (result.best_step, result.best_score) == (6, sign * 7.0)
        after = snapshot(model)
        assert all(torch.equal(after[name], seen[1][name]) for name in after)
        dev = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines() if "dev" in line]
        assert [(row["step"], row["dev"]["fuzzy"]) for row in dev] == [
            (3, sign * 3.0),
            (6, sign * 7.0),
            (9, sign * 5.0),
        ]

    @pytest.mark.slow
    def test_evaluation_does_not_change_training(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        """Even one that draws random numbers, with dropout in the method."""
        method = {**LORA, "dropout": 0.3}

        def evaluate() -> dict[str, float]:
            return {"fuzzy": float(torch.rand(1000).mean()) * 0 + 1.0}

        plain, _ = run(tmp_path / "plain", tiny_model_folder, samples, method)
        scored, _ = run(tmp_path / "scored", tiny_model_folder, samples, method, evaluate, evaluate_every=0.4)
        assert plain.losses == scored.losses

    @pytest.mark.slow
    def test_the_log_says_everything(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        run(tmp_path, tiny_model_folder, samples)
        rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, 7))
        names = {"loss", "learning_rate", "gradient_norm", "samples_per_second", "tokens_per_second", "memory"}
        assert all(names | {"seconds_left", "epoch"} <= row.keys() for row in rows)
        assert rows[-1]["seconds_left"] == 0
        assert list((tmp_path / "tensorboard").rglob("events*"))

    def test_a_budget_of_minutes(self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
        result, _ = run(
            tmp_path, tiny_model_folder, samples, epochs=5000, max_minutes=1e-4, evaluate=lambda: {"f": 1.0}
        )
        assert not result.complete
        assert 1 <= result.steps < 100
        assert result.best_step == result.steps
        assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()

    @pytest.mark.slow
    def test_the_schedule_ends_with_the_minutes(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a clock on which each step takes a second, ten seconds out of 5000 epochs are a whole cosine."""
        ticks = itertools.count()
        monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(ticks)))
        result, _ = run(
            tmp_path, tiny_model_folder, samples, epochs=5000, max_minutes=10 / 60, warmup_ratio=0.1, max_grad_norm=None
        )
        assert result.steps == 10
        rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        rates = [row["learning_rate"] / rows[1]["learning_rate"] for row in rows]
        assert rates[0] < 0.01 and rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < 0.05
        assert rows[-1]["seconds_left"] == 0

    @pytest.mark.slow
    def test_the_schedule_ends_with_the_cpu_minutes(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the objective learns from took three of the ten seconds; a step takes one."""
        ticks = itertools.count()
        monkeypatch.setattr(loop.time, "process_time", lambda: float(next(ticks)))
        model, method, recipe = prepare(tiny_model_folder, LORA, epochs=5000, max_cpu_minutes=10 / 60)
        inputs = ObjectiveInputs(cpu_seconds=2)  # and one, by this clock, to prepare the objective
        result = train(model, method, samples, recipe, tmp_path, objective_inputs=inputs)
        assert result.steps == 7 and result.cpu_seconds == 10 and not result.complete

    def test_a_loss_that_is_no_number_stops(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        model, method, recipe = prepare(tiny_model_folder, LORA)
        with torch.no_grad():
            next(weight for weight in model.model.parameters() if weight.requires_grad).fill_(torch.nan)
        with pytest.raises(RunError, match=r"lower train\.learning_rate"):
            train(model, method, samples, recipe, tmp_path)

    @pytest.mark.slow
    def test_recomputed_activations_change_nothing(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        method = {"name": "full"}
        plain, left = run(tmp_path / "plain", tiny_model_folder, samples, method, gradient_checkpointing=False)
        again, right = run(tmp_path / "again", tiny_model_folder, samples, method, gradient_checkpointing=True)
        # Whole layers, which recompute norms alone. With torch's attention (CPUs with AVX-512) sums are rounded
        # otherwise, which Adam enlarges where a gradient is next to none.
        assert plain.losses == pytest.approx(again.losses, rel=1e-4)
        assert all(torch.allclose(left[name], right[name], atol=5e-4) for name in left)


class TestInterruption:
    @pytest.mark.slow
    def test_ctrl_c_saves_and_the_rest_is_the_same(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        wanted, weights = run(tmp_path / "whole", tiny_model_folder, samples)

        def stop_in_third(event: TrainingEvent) -> None:
            if (event.kind, event.step) == ("step", 3):
                os.kill(os.getpid(), signal.SIGINT)

        model, method, recipe = prepare(tiny_model_folder, LORA)
        with pytest.raises(Interrupted, match="run the same command again"):
            train(model, method, samples, recipe, tmp_path / "cut", on_event=stop_in_third)
        assert not (tmp_path / "cut" / "adapter").exists()
        found, again = run(tmp_path / "cut", tiny_model_folder, samples)
        assert found.losses == wanted.losses
        assert all(torch.equal(weights[name], again[name]) for name in weights)
        kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cut" / "checkpoints").rglob("*")}
        run(tmp_path / "cut", tiny_model_folder, samples)  # killed after its last step: nothing is left to do
        assert kept == {file: file.stat().st_mtime_ns for file in (tmp_path / "cut" / "checkpoints").rglob("*")}

    @pytest.mark.slow
    def test_ctrl_c_during_an_evaluation_scores_again(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        calls = []

        def evaluate() -> dict[str, float]:
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt
            return {"f": float(len(calls))}

        with pytest.raises(Interrupted):
            run(tmp_path, tiny_model_folder, samples, evaluate=evaluate)
        result, _ = run(tmp_path, tiny_model_folder, samples, evaluate=evaluate)
        assert len(calls) == 3
        assert result.best_step == 6

    @pytest.mark.slow
    def test_other_settings_are_refused(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        run(tmp_path, tiny_model_folder, samples)
        with pytest.raises(RunError, match="other samples or settings"):
            run(tmp_path, tiny_model_folder, samples, learning_rate=1e-3)
        with pytest.raises(RunError, match="other samples or settings"):
            run(tmp_path, tiny_model_folder, samples[:-1])

    def test_rows_after_the_checkpoint_are_dropped(self, tmp_path: Path) -> None:
        log = tmp_path / "log.jsonl"
        log.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "dev": {}}\n{"step": 3}\n{"step": 4, "lo')
        keep_rows(log, 2, evaluated_step=0)
        assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
