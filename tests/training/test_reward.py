"""Rewards: advantages and losses against formulas, a bandit by hand, and trainings that resume bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.rollouts import LONGEST, even_tokens
from fixtures.small_job import batch_of, make_conversations, prepare, resumes_exactly, small_recipe, snapshot, train

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.generation.sampling import ReplyRequest, Sampling, sample_replies
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import Clipping, Reward
from mllm_tailor.training import ObjectiveInputs, Rollout, check_objective
from mllm_tailor.training.objectives.policy_losses import (
    ReplyTokens,
    advantages,
    divergence,
    per_reply,
    policy_loss,
)
from mllm_tailor.training.objectives.reward import replicas

LORA = {"name": "lora", "rank": 4}
WIDE = Clipping(0.2, 0.2)


class TestAdvantages:
    @pytest.mark.parametrize(
        ("loss", "wanted"),
        [
            ("grpo", [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]),
            ("dr_grpo", [0.75, -0.25, -0.25, -0.25]),
            ("rloo", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ],
    )
    def test_of_one_right_reply_in_four(self, loss: str, wanted: list[float]) -> None:
        assert advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), loss)[0].tolist() == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "rloo", "gspo", "dapo"])
    def test_equal_rewards_have_none_at_all(self, loss: str) -> None:
        rewards = torch.tensor([[share / 100] * 6 for share in range(100)])
        assert advantages(rewards, loss).abs().max() == 0


class TestLosses:
    """Two replies of three tokens and one, with ratios away from 1."""

    LOG_P = torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64)
    OLD = torch.tensor([-1.5, -1.9, -0.5, -2.5], dtype=torch.float64)
    REPLY = torch.tensor([0, 0, 0, 1])
    ADVANTAGE = torch.tensor([2.0, -1.0], dtype=torch.float64)

    def tokens(self) -> ReplyTokens:
        return ReplyTokens(self.LOG_P, self.OLD, self.REPLY, 2)

    def clipped(self, ratio: float, advantage: float, clipping: Clipping = WIDE) -> float:
        return min(ratio * advantage, min(max(ratio, 1 - clipping.low), 1 + clipping.high) * advantage)

    def per_token(self, clipping: Clipping = WIDE) -> list[float]:
        rows = zip(self.LOG_P.tolist(), self.OLD.tolist(), self.REPLY.tolist(), strict=True)
        return [
            -self.clipped(math.exp(new - old), self.ADVANTAGE.tolist()[reply], clipping) for new, old, reply in rows
        ]

    def test_grpo(self) -> None:
        first, second, third, other = self.per_token()
        found = policy_loss(self.tokens(), self.ADVANTAGE, "grpo", WIDE, 10)
        assert found.tolist() == pytest.approx([(first + second + third) / 3, other])

    def test_dr_grpo(self) -> None:
        *one, other = self.per_token()
        found = policy_loss(self.tokens(), self.ADVANTAGE, "dr_grpo", WIDE, 10)
        assert found.tolist() == pytest.approx([sum(one) / 10, other / 10])

    def test_dapo_clips_higher(self) -> None:
        clipping = Reward(loss="dapo").clipping
        *one, other = self.per_token(clipping)
        found = policy_loss(self.tokens(), self.ADVANTAGE, "dapo", clipping, 10)
        assert clipping == Clipping(0.2, 0.28) and one[0] == pytest.approx(-2 * 1.28)
        assert found.tolist() == pytest.approx([sum(one), other])

    @pytest.mark.parametrize("loss", ["gspo", "rloo"])
    def test_whole_replies(self, loss: str) -> None:
        shares = [0.5 - 0.1 + 0.0, -0.5]
        lengths = [3, 1] if loss == "gspo" else [1, 1]
        wanted = [
            -self.clipped(math.exp(total / length), advantage)
            for total, length, advantage in zip(shares, lengths, self.ADVANTAGE.tolist(), strict=True)
        ]
        assert policy_loss(self.tokens(), self.ADVANTAGE, loss, WIDE, 10).tolist() == pytest.approx(wanted)

    def test_divergence(self) -> None:
        log_p, log_q = torch.tensor([-1.0, -2.0]), torch.tensor([-1.2, -1.0])
        wanted = [math.exp(-0.2) + 0.2 - 1, math.exp(1.0) - 1.0 - 1]
        assert divergence(log_p, log_q).tolist() == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize(
        ("loss", "wanted"), [("grpo", [2.0, 5.0]), ("gspo", [2.0, 5.0]), ("dr_grpo", [0.6, 0.5]), ("dapo", [6.0, 5.0])]
    )
    def test_a_divergence_is_weighed_as_the_loss(self, loss: str, wanted: list[float]) -> None:
        values = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
        assert per_reply(self.tokens(), values, loss, 10).tolist() == pytest.approx(wanted)

    @pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "rloo", "gspo", "dapo"])
    def test_a_bandit_has_the_analytic_gradient(self, loss: str) -> None:
        """One token to choose: the gradient of each reply is -A (onehot - p) at the policy that sampled it."""
        logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
        arms, rewards = torch.tensor([0, 2, 2, 1]), torch.tensor([[0.0, 1.0, 0.5, 0.0]], dtype=torch.float64)
        gain = advantages(rewards, loss)[0]
        log_p = logits.log_softmax(-1)[arms]
        tokens = ReplyTokens(log_p, log_p.detach(), torch.arange(4), 4)
        policy_loss(tokens, gain, loss, WIDE, longest=1).sum().backward()
        policy = logits.detach().softmax(-1)
        wanted = -sum(
            gain[i] * (torch.eye(3, dtype=torch.float64)[arm] - policy) for i, arm in enumerate(arms.tolist())
        )
        assert logits.grad is not None and torch.allclose(logits.grad, torch.as_tensor(wanted), atol=1e-12)


def test_replicas() -> None:
    assert list(replicas([3, 3, 1, 3, 1], 3)) == [(3, 0), (3, 1), (1, 0), (3, 2), (1, 1)]
    assert list(replicas([3, 3, 3], 2)) == [(3, 0), (3, 1), (3, 0)]  # a sample that a step holds twice


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return make_conversations(tmp_path_factory.mktemp("pictures"), 4)


def request(count: int, slots: int, **sampling: float) -> ReplyRequest:
    values = {"temperature": 1.0, "top_p": 1.0, "seed": 7, **sampling}
    return ReplyRequest(count, Sampling(values["temperature"], values["top_p"], int(values["seed"])), 5, slots)


class TestSampling:
    def test_frequencies_are_the_probabilities(self, tiny_model_folder: Path, samples: list[Conversation]) -> None:
        """Of 400 first tokens; a chi-square over the likeliest tokens stays below its 99.9 % point."""
        model, _, _ = prepare(tiny_model_folder, LORA)
        drawn = sample_replies(model, samples[:1], ReplyRequest(400, Sampling(0.7, 1.0, 1), 1, 50))[0]
        batch = batch_of(model, [samples[0].unlabelled()])
        batch.pop("labels")
        with torch.no_grad():
            model.model.eval()
            probabilities = (model.model(**batch).logits[0, -1].double() / 0.7).softmax(-1)
        top = probabilities.topk(8).indices.tolist()
        first = [(reply.tokens or [reply.stop])[0] for reply in drawn]
        counts = [first.count(token) for token in top] + [sum(token not in top for token in first)]
        shares = [float(probabilities[token]) for token in top]
        expected = [400 * share for share in (*shares, 1 - sum(shares))]
        statistic = sum((count - want) ** 2 / want for count, want in zip(counts, expected, strict=True))
        assert statistic < 26.1  # 8 degrees of freedom

    @pytest.mark.slow
    def test_a_reply_depends_on_no_other(self, tiny_model_folder: Path, samples: list[Conversation]) -> None:
        model, _, _ = prepare(tiny_model_folder, LORA)
        together = sample_replies(model, samples, request(3, 16))
        apart = sample_replies(model, samples, request(3, 3))
        assert [[reply.tokens for reply in group] for group in together] == [
            [reply.tokens for reply in group] for group in apart
        ]
        assert len({tuple(reply.tokens) for group in together for reply in group}) > 6
        other = sample_replies(model, samples, request(3, 16, seed=8))
        assert [reply.tokens for reply in other[0]] != [reply.tokens for reply in together[0]]

    def test_a_small_nucleus_is_greedy(self, tiny_model_folder: Path, samples: list[Conversation]) -> None:
        model, _, _ = prepare(tiny_model_folder, LORA)
        replies = sample_replies(model, samples[:2], request(2, 4, top_p=1e-6))
        assert all(group[0].tokens == group[1].tokens for group in replies)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"loss": "grpo", "kl_weight": 0.01}, {"loss": "gspo", "updates": 2, "epsilon": 0.2}]
)
def test_grpo_raises_the_reward_and_every_resume_is_exact(
    settings: dict[str, Any], tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
) -> None:
    """Also where the interruption lies between two updates on the same replies."""
    reward = {"metric": "unused", "group_size": 8, **settings}
    models: list[LoadedModel] = []

    def begin() -> Any:
        made = prepare(tiny_model_folder, LORA, reward=reward, steps=14, batch_size=4, learning_rate=3e-2)
        models.append(made[0])
        return made

    inputs = ObjectiveInputs(
        sample_replies=lambda conversations, seed: even_tokens(models[-1], 8)(conversations, seed),
        longest_reply=LONGEST,
    )
    resumes_exactly(begin, samples, tmp_path, inputs)
    rows = read_log(tmp_path / "whole")
    if settings["loss"] == "grpo":
        rewards = [row["reward"] for row in rows]
        assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.04
    assert {"equal_groups", "entropy", "reply_tokens", "truncated", "watch/length"} <= rows[0].keys()
    assert ("kl" in rows[0]) == ("kl_weight" in settings)


def read_log(folder: Path) -> list[Any]:
    return [row for _, row in read_jsonl(folder / "log.jsonl") if "loss" in row]


@pytest.mark.slow
def test_equal_rewards_stop_a_training(tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path) -> None:
    def constant(conversations: Sequence[Conversation], seed: int) -> list[list[Rollout]]:
        return [[Rollout([5], [0], 0.5), Rollout([6], [0], 0.5)] for _ in conversations]

    reward = {"group_size": 2}
    model, method, recipe = prepare(tiny_model_folder, LORA, reward=reward, steps=30, batch_size=1)
    with pytest.raises(RunError, match="had the same reward"):
        train(model, method, samples, recipe, tmp_path, objective_inputs=ObjectiveInputs(sample_replies=constant))


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_an_optimizer_that_updates_in_the_backward_pass(
    name: str, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
) -> None:
    """It passes over a step twice, to clip gradients; both passes see the same replies, sampled once."""
    model, method, recipe = prepare(
        tiny_model_folder, {"name": name, "parts": ["language"]}, reward={"group_size": 2}, steps=2, batch_size=2
    )
    calls: list[int] = []

    def sample(conversations: Sequence[Conversation], seed: int) -> list[list[Rollout]]:
        calls.append(seed)
        return [[Rollout([70, 71], [0, 1], 1.0), Rollout([72], [0], 0.0)] for _ in conversations]

    before = snapshot(model)
    inputs = ObjectiveInputs(sample_replies=sample, longest_reply=2)
    result = train(model, method, samples, recipe, tmp_path, objective_inputs=inputs)
    assert result.steps == len(calls) == 2 and all(math.isfinite(loss) for loss in result.losses)
    assert any(not torch.equal(before[key], value) for key, value in snapshot(model).items())


class TestRefused:
    def test_a_group_of_one(self) -> None:
        with pytest.raises(ValueError, match="greater than or equal to 2"):
            Reward(group_size=1)

    def test_no_weight(self) -> None:
        with pytest.raises(ValueError, match="a weight other than 0"):
            Reward(metric={"exact": 0.0})

    def test_a_method_that_cannot_be_switched_off(
        self, tiny_model_folder: Path, samples: list[Conversation], tmp_path: Path
    ) -> None:
        full = {"name": "full", "parts": ["language"]}
        model, method, recipe = prepare(tiny_model_folder, full, reward={"kl_weight": 0.1})
        inputs = ObjectiveInputs(sample_replies=even_tokens(model, 8))
        with pytest.raises(RunError, match="needs adapters that can be switched off"):
            train(model, method, samples, recipe, tmp_path, objective_inputs=inputs)

    def test_a_method_without_gradients(self) -> None:
        recipe = small_recipe({"name": "mezo"}, reward={})
        with pytest.raises(RecipeError, match="samples replies and needs gradients"):
            check_objective(make_method(recipe), recipe.train, recipe.task_name)
