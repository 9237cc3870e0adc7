"""On-policy distillation: the divergence against plain sums, and a training that comes nearer to its teacher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.rollouts import LONGEST, even_tokens
from fixtures.small_job import make_conversations, prepare, resumes_exactly, small_recipe, train

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel
from mllm_tailor.training import ObjectiveInputs, check_objective
from mllm_tailor.training.objectives.on_policy import generalised_jsd

LORA = {"name": "lora", "rank": 4}


def kl(left: list[float], right: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(left, right, strict=True))


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
def test_the_divergence_is_that_of_the_paper(beta: float) -> None:
    """Of two tokens over three words, against sums over Python's floats; at the ends, the two KL divergences."""
    student, teacher = (
        torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]]),
        torch.tensor([[1.5, 0.2, -0.3], [2.0, 1.0, 1.0]]),
    )
    for row, value in enumerate(generalised_jsd(student, teacher, beta, 0.7).tolist()):
        p, q = ((logits[row].double() / 0.7).softmax(-1).tolist() for logits in (student, teacher))
        mixture = [beta * right + (1 - beta) * left for left, right in zip(p, q, strict=True)]
        wanted = {0.0: kl(q, p), 1.0: kl(p, q)}.get(beta, beta * kl(q, mixture) + (1 - beta) * kl(p, mixture))
        assert value == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_equal_models_do_not_diverge(beta: float) -> None:
    logits = torch.randn(4, 20, requires_grad=True)
    loss = generalised_jsd(logits, logits.detach(), beta, 1.0).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5) and logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_the_reverse_divergence_of_a_bandit_has_the_analytic_gradient() -> None:
    """KL(p || q) of one token: the gradient at logit i is p_i (log p_i/q_i - KL)."""
    student = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -1.0]])
    loss = generalised_jsd(student, teacher, 1.0, 1.0).sum()
    loss.backward()
    p, q = (logits.detach().softmax(-1) for logits in (student, teacher))
    wanted = p * ((p / q).log() - loss.detach())
    assert student.grad is not None and torch.allclose(student.grad, wanted, atol=1e-6)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return make_conversations(tmp_path_factory.mktemp("pictures"), 4)


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher_and_every_resume_is_exact(
    tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
) -> None:
    """The student is the teacher with adapters that have drifted; a third of the samples keep their labels."""
    models: list[LoadedModel] = []
    distill = {"teacher": str(tiny_model_folder), "of": "replies", "own_share": 0.67, "divergence": 0.5}

    def begin() -> Any:
        made = prepare(tiny_model_folder, LORA, distill=distill, steps=14, batch_size=4, learning_rate=1e-2)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in made[0].model.parameters():
                if weight.requires_grad:
                    weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
        models.append(made[0])
        return made

    inputs = ObjectiveInputs(
        sample_replies=lambda conversations, seed: even_tokens(models[-1], 1)(conversations, seed),
        longest_reply=LONGEST,
    )
    resumes_exactly(begin, samples, tmp_path, inputs)
    rows = [row for _, row in read_jsonl(tmp_path / "whole" / "log.jsonl") if "loss" in row]
    assert rows[-1]["divergence"] < 0.5 * rows[0]["divergence"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["divergence"], rel=1e-4)
    assert {"entropy", "reply_tokens", "watch/score", "watch/length"} <= rows[0].keys()


@pytest.mark.slow
def test_labels_alone_need_no_sampling(tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
    """Teacher and student are one: the divergence on the labels is none."""
    distill = {"teacher": str(tiny_model_folder), "of": "replies", "own_share": 0.0}
    model, method, recipe = prepare(tiny_model_folder, LORA, distill=distill, steps=1, batch_size=2)
    result = train(model, method, samples, recipe, tmp_path)
    assert result.losses == [pytest.approx(0, abs=1e-5)]


def test_it_needs_a_run_and_gradients(tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
    distill = {"teacher": str(tiny_model_folder), "of": "replies"}
    model, method, recipe = prepare(tiny_model_folder, LORA, distill=distill)
    with pytest.raises(RunError, match=r"`train.distill.of: replies` needs a run"):
        train(model, method, samples, recipe, tmp_path)
    recipe = small_recipe({"name": "mezo"}, distill=distill)
    with pytest.raises(RecipeError, match="samples replies and needs gradients"):
        check_objective(make_method(recipe), recipe.train, recipe.task_name)
