"""Objectives beside cross-entropy: a metric without gradient, a teacher, preferences, contrast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_job import (
    batch_of,
    difference,
    make_conversations,
    open_small,
    prepare,
    resumes_exactly,
    small_recipe,
    train,
)
from torch import Tensor
from torch.nn import functional

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, ModelError, RecipeError, RunError
from mllm_tailor.methods import make_method
from mllm_tailor.models import load_model
from mllm_tailor.training import (
    ObjectiveInputs,
    TrainingConfig,
    TrainingEvent,
    TrainingHooks,
    check_objective,
    check_turns,
)
from mllm_tailor.training.objectives.cross_entropy import answer_log_probabilities, answer_logits, answer_loss
from mllm_tailor.training.objectives.distillation import kept_divergence, top_log_probabilities

LORA = {"name": "lora", "rank": 4}
VISION = {"name": "full", "parts": ["vision"]}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return make_conversations(tmp_path_factory.mktemp("pictures"), 6)


class TestLogits:
    def test_log_probabilities_are_the_loss_row_by_row(
        self, tiny_model_folder: Path, samples: list[Conversation]
    ) -> None:
        model = open_small(tiny_model_folder, make_method(small_recipe(LORA)))
        with torch.no_grad():
            summed, _ = answer_loss(model.model, batch_of(model, samples))
            each = answer_log_probabilities(model.model, batch_of(model, samples))
            alone = torch.cat([answer_log_probabilities(model.model, batch_of(model, [one])) for one in samples])
        assert float(-each.sum()) == pytest.approx(float(summed), rel=1e-6)
        assert difference(each, alone) < 1e-5


class TestMetric:
    SPEC = {"name": "mezo", "parts": ["head"], "objective": "metric", "epsilon": 0.05}  # noqa: RUF012

    @pytest.mark.slow
    def test_it_climbs_a_metric_without_gradient(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        """A step function of the weights: the share of the head's sums above a mark. The best weights' score grows."""
        model, method, recipe = prepare(
            tiny_model_folder, self.SPEC, epochs=30, learning_rate=0.05, schedule="constant", batch_size=6
        )
        head = model.model.lm_head.weight

        def measure(_: Any) -> float:
            return float((head.detach()[:, 0] > 0.02).double().mean())

        before = measure(None)
        result = train(model, method, samples, recipe, tmp_path, objective_inputs=ObjectiveInputs(measure=measure))
        assert len(result.losses) == 30
        assert measure(None) > before + 0.05

    def test_without_a_run(self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
        model, method, recipe = prepare(tiny_model_folder, self.SPEC)
        with pytest.raises(RunError, match="tailor run"):
            train(model, method, samples, recipe, tmp_path)


class TestDistillation:
    @pytest.mark.slow
    def test_a_student_equal_to_its_teacher_has_no_loss(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        distill = {"teacher": str(tiny_model_folder), "weight": 1.0, "top_k": 5}
        model, method, recipe = prepare(tiny_model_folder, LORA, distill=distill, epochs=1, batch_size=6)
        result = train(model, method, samples, recipe, tmp_path)
        assert abs(result.losses[0]) < 1e-5

    @pytest.mark.slow
    def test_it_falls_towards_the_teacher(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        """Another student, moved away, comes closer; broken off, it resumes exactly, the teacher's part being read."""

        def begin() -> Any:
            distill = {"teacher": str(tiny_model_folder), "weight": 1.0}
            model, method, recipe = prepare(
                tiny_model_folder, {"name": "full", "parts": ["head"]}, distill=distill, epochs=6, learning_rate=3e-3
            )
            with torch.no_grad():
                torch.manual_seed(5)
                model.model.lm_head.weight.add_(0.1 * torch.randn_like(model.model.lm_head.weight))
            return model, method, recipe

        result = resumes_exactly(begin, samples, tmp_path, ObjectiveInputs())
        assert result.losses[-1] < 0.5 * result.losses[0]

    def test_the_divergence(self) -> None:
        """All tokens kept: the whole KL; fewer: no more than that; equal: zero; its gradient scales as 1/T^2."""
        torch.manual_seed(0)
        teacher, student = torch.randn(7, 20), torch.randn(7, 20)
        whole = functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
        found = {
            top: float(kept_divergence(student, *top_log_probabilities(teacher, top, 1.0), 1.0)) for top in (3, 19, 20)
        }
        assert found[20] == pytest.approx(float(whole), rel=1e-3)
        assert found[3] < found[19] <= found[20] + 1e-4
        assert float(kept_divergence(teacher, *top_log_probabilities(teacher, 3, 2.0), 2.0)) == pytest.approx(
            0, abs=1e-5
        )
        small, slopes = 1e-2 * teacher, []
        for temperature in (1.0, 4.0):
            logits = torch.zeros(7, 20, requires_grad=True)
            kept = top_log_probabilities(small, 20, temperature)
            (temperature**2 * kept_divergence(logits, *kept, temperature)).backward()
            slopes.append(logits.grad)
        assert difference(slopes[0], slopes[1]) < 0.05

    @pytest.mark.slow
    def test_kept_logits_are_the_teachers(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        model, _, recipe = prepare(
            tiny_model_folder, LORA, distill={"teacher": str(tiny_model_folder), "top_k": 4}, epochs=1
        )
        caught: dict[int, tuple[Tensor, Tensor]] = {}

        def note(event: TrainingEvent) -> None:
            if event.kind == "step":
                caught.update(training.steps.objective.teacher_logits)

        from mllm_tailor.training.loop import Training

        config = TrainingConfig.from_recipe(recipe)
        training = Training(model, samples, config, tmp_path, TrainingHooks(on_event=note))
        training.run()
        training.batches.close()
        teacher = load_model(tiny_model_folder, dtype="float32", device="cpu")
        with torch.no_grad():
            logits, _, _ = answer_logits(teacher.model, batch_of(teacher, [samples[2]]))
        wanted = (logits / 2).log_softmax(-1).topk(4)
        assert torch.equal(caught[2][0], wanted.indices)
        assert difference(caught[2][1], wanted.values) < 1e-5

    def test_a_vision_tower_equal_to_its_teachers_has_no_loss(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        distill = {"teacher": str(tiny_model_folder), "of": "vision", "layers": 2}
        model, method, recipe = prepare(tiny_model_folder, VISION, distill=distill, epochs=1, batch_size=6)
        assert abs(train(model, method, samples, recipe, tmp_path).losses[0]) < 1e-5

    @pytest.mark.slow
    def test_a_vision_tower_comes_closer(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        def begin() -> Any:
            distill = {"teacher": str(tiny_model_folder), "of": "vision", "layers": 2}
            model, method, recipe = prepare(
                tiny_model_folder, VISION, distill=distill, epochs=6, batch_size=3, learning_rate=3e-3
            )
            with torch.no_grad():
                torch.manual_seed(5)
                for weight in model.model.model.vision_tower.parameters():
                    weight.add_(0.2 * weight.std().nan_to_num() * torch.randn_like(weight))
            return model, method, recipe

        result = resumes_exactly(begin, samples, tmp_path, ObjectiveInputs())
        assert result.losses[-1] < 0.8 * result.losses[0]
        assert not any("distill" in file.read_bytes()[:4000].decode("latin1") for file in tmp_path.rglob("trained.*"))

    def test_more_layers_than_there_are(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        distill = {"teacher": str(tiny_model_folder), "of": "vision", "layers": 3}
        model, method, recipe = prepare(tiny_model_folder, VISION, distill=distill)
        with pytest.raises(ModelError, match="has 2 layers"):
            train(model, method, samples, recipe, tmp_path)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (LORA, {"prefer": {}, "distill": "teacher"}, "two objectives"),
        ({"name": "mezo", "objective": "metric"}, {"prefer": {}}, "two objectives"),
        (LORA, {"distill": "teacher", "loss": "all"}, "does not go with `train.distill`"),
        (LORA, {"distill": {"teacher": "t", "of": "vision"}}, r"set method.parts: \[vision\]"),
    ],
)
def test_refused_before_a_model_is_opened(method: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    recipe = small_recipe(method, **settings)
    with pytest.raises(RecipeError, match=words):
        check_objective(make_method(recipe), recipe.train, recipe.task_name)


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"prefer": {}}, "train.prefer"),
        ({"reward": {"metric": "exact"}}, "train.reward"),
        ({"distill": "t"}, "train.distill"),
    ],
)
def test_further_turns_are_refused_beside_objectives_of_single_answers(settings: dict[str, Any], setting: str) -> None:
    recipe = small_recipe(LORA, **settings)
    with pytest.raises(RecipeError, match=f"`data.transcription_turns` does not go with `{setting}`"):
        check_turns(make_method(recipe), recipe.train, recipe.task_name)
    plain = small_recipe(LORA)
    check_turns(make_method(plain), plain.train, plain.task_name)


def test_a_teacher_with_other_words(tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
    model, method, recipe = prepare(tiny_model_folder, LORA, distill={"teacher": str(tiny_model_folder)})
    model.processor.tokenizer.add_tokens(["<another>"])
    with pytest.raises((ModelError, DataError), match="vocabulary is not the student's"):
        train(model, method, samples, recipe, tmp_path)
