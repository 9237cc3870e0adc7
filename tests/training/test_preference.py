"""Preference tuning: the losses against plain formulas, and trainings that end the same when broken off and resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_job import batch_of, make_conversations, prepare, resumes_exactly, train

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RunError
from mllm_tailor.recipe import Prefer
from mllm_tailor.training import ObjectiveInputs
from mllm_tailor.training.objectives import preference_losses as losses
from mllm_tailor.training.objectives.cross_entropy import answer_log_probabilities
from mllm_tailor.training.objectives.preference import RunningMean
from mllm_tailor.training.objectives.preference_losses import Answers

LORA = {"name": "lora", "rank": 4}
DOUBLE = torch.float64


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return make_conversations(tmp_path_factory.mktemp("pictures"), 6)


@pytest.fixture(scope="module")
def rejected(samples: list[Conversation]) -> dict[str, str]:
    return {sample.id: f'{{"total": "{sample.id}9"}}' for sample in samples[:5]}


def answers(log_p: list[float], log_q: list[float], tokens: list[int]) -> Answers:
    return Answers(
        torch.tensor(log_p, dtype=torch.float64), torch.tensor(log_q, dtype=torch.float64), torch.tensor(tokens)
    )


RIGHT = answers([-3.0, -8.5, -0.2], [-4.0, -8.0, -0.3], [4, 7, 1])
WRONG = answers([-5.0, -6.0, -2.5], [-4.5, -7.0, -2.0], [5, 6, 2])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


class TestFormulas:
    """Each loss, summed over three pairs, computed again with Python's floats."""

    def pairs(self) -> list[tuple[tuple[float, float, int], tuple[float, float, int]]]:
        def rows(item: Answers) -> list[tuple[float, float, int]]:
            return list(zip(item.log_p.tolist(), item.log_q.tolist(), item.tokens.tolist(), strict=True))

        return list(zip(rows(RIGHT), rows(WRONG), strict=True))

    def test_dpo(self) -> None:
        wanted = sum(-math.log(sigmoid(0.3 * ((p - q) - (x - y)))) for (p, q, _), (x, y, _) in self.pairs())
        assert float(losses.dpo(RIGHT, WRONG, 0.3)) == pytest.approx(wanted, rel=1e-9)

    def test_quality(self) -> None:
        shift = 0.25
        wanted = sum(
            -math.log(sigmoid(0.3 * (p - q) - shift)) - math.log(sigmoid(-(0.3 * (x - y) - shift)))
            for (p, q, _), (x, y, _) in self.pairs()
        )
        assert float(losses.quality(RIGHT, WRONG, 0.3, shift)) == pytest.approx(wanted, rel=1e-9)

    def test_simpo(self) -> None:
        wanted = sum(-math.log(sigmoid(2.0 * (p / n - x / m) - 0.5)) for (p, _, n), (x, _, m) in self.pairs())
        assert float(losses.simpo(RIGHT, WRONG, 2.0, 0.5)) == pytest.approx(wanted, rel=1e-9)

    def test_orpo(self) -> None:
        def log_odds(mean: float) -> float:
            return math.log(math.exp(mean) / (1 - math.exp(mean)))

        wanted = sum(
            -p / n - 0.1 * math.log(sigmoid(log_odds(p / n) - log_odds(x / m))) for (p, _, n), (x, _, m) in self.pairs()
        )
        assert float(losses.orpo(RIGHT, WRONG, 0.1)) == pytest.approx(wanted, rel=1e-9)

    def test_orpo_of_a_certain_answer_is_finite(self) -> None:
        certain = Answers(torch.tensor([0.0], requires_grad=True), torch.zeros(1), torch.tensor([3]))
        losses.orpo(certain, answers([-1.0], [0.0], [2]), 0.1).backward()
        assert certain.log_p.grad is not None and certain.log_p.grad.isfinite().all()

    def test_kto(self) -> None:
        both = Answers(
            *(torch.cat([getattr(RIGHT, name), getattr(WRONG, name)]) for name in ("log_p", "log_q", "tokens"))
        )
        is_chosen = torch.tensor([True] * 3 + [False] * 3)
        wanted = sum(
            (1 - sigmoid(0.3 * ((p - q) - 0.4))) + (1 - sigmoid(0.3 * (0.4 - (x - y))))
            for (p, q, _), (x, y, _) in self.pairs()
        )
        assert float(losses.kto(both, is_chosen, 0.3, 0.4)) == pytest.approx(wanted, rel=1e-9)


def test_the_reward_shift_is_the_mean_over_finished_steps() -> None:
    shift = RunningMean()
    shift.add(torch.tensor([100.0]))
    shift.clear()  # the step ran out of memory and is run again
    shift.add(torch.tensor([1.0, 2.0]))
    shift.add(torch.tensor([6.0]))
    assert shift.mean == 0
    shift.commit()
    assert (shift.mean, shift.count) == (3.0, 3)
    shift.add(torch.tensor([7.0]))
    shift.commit()
    assert (shift.mean, shift.count) == (4.0, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"loss": "dpo", "beta": 0.5}, math.log(2)),
        ({"loss": "mpo", "beta": 0.5, "answer_weight": 0.0}, 0.8 * math.log(2) + 0.2 * 2 * math.log(2)),
        ({"loss": "kto", "beta": 0.5}, 0.5),
        ({"loss": "simpo"}, None),
        ({"loss": "orpo"}, None),
    ],
)
def test_right_answers_gain_on_wrong_ones_and_a_resume_is_exact(
    settings: dict[str, Any],
    first: float | None,
    tiny_model_folder: Path,
    samples: list[Conversation],
    rejected: dict[str, str],
    tmp_path: Path,
) -> None:
    """The first loss is known where model and reference are one; the shift of MPO outlives an interruption."""
    wrong = [replace(sample, answer=rejected[sample.id]) for sample in samples[:5]]
    inputs = ObjectiveInputs(rejected=rejected)

    def begin() -> Any:
        return prepare(tiny_model_folder, LORA, prefer=settings, epochs=3, batch_size=2, learning_rate=3e-3)

    def margin(model: Any) -> float:
        with torch.no_grad():
            right, bad = (answer_log_probabilities(model.model, batch_of(model, part)) for part in (samples[:5], wrong))
        return float((right - bad).mean())

    model, method, recipe = begin()
    before = margin(model)
    result = train(model, method, samples, recipe, tmp_path / "alone", objective_inputs=inputs)
    assert margin(model) > before
    if first is not None:
        assert result.losses[0] == pytest.approx(first, abs=1e-4)
    if settings["loss"] in ("mpo", "kto"):  # those with a state or a second pass; DPO's is in the slow test of resuming
        resumes_exactly(begin, samples, tmp_path, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mpo", "kto"])
def test_micro_batches_do_not_change_a_step(
    loss: str, tiny_model_folder: Path, samples: list[Conversation], rejected: dict[str, str], tmp_path: Path
) -> None:
    def first_losses(size: int) -> list[float]:
        model, method, recipe = prepare(
            tiny_model_folder,
            LORA,
            prefer={"loss": loss},
            steps=2,
            batch_size=4,
            micro_batch_size=size,
            learning_rate=3e-3,
        )
        inputs = ObjectiveInputs(rejected=rejected)
        return list(train(model, method, samples, recipe, tmp_path / str(size), objective_inputs=inputs).losses)

    assert first_losses(1) == pytest.approx(first_losses(4), rel=1e-4)


def test_nothing_to_prefer(tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
    model, method, recipe = prepare(tiny_model_folder, LORA, prefer={})
    with pytest.raises(RunError, match="answers every training sample correctly"):
        train(model, method, samples, recipe, tmp_path, objective_inputs=ObjectiveInputs(rejected={}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"margin": 1.0}, "setting of `loss: simpo`"),
        ({"loss": "kto", "quality_weight": 0.5}, "setting of `loss: mpo`"),
        ({"loss": "orpo", "answer_weight": 1.0}, "holds the right answer's loss already"),
    ],
)
def test_settings_of_another_loss_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Prefer(**settings)


def test_a_saved_recipe_reads_back() -> None:
    for loss in ("dpo", "mpo", "kto", "simpo", "orpo"):
        settings = Prefer(loss=loss)
        assert Prefer(**settings.model_dump()) == settings
