"""Learning from the score of sampled replies (GRPO and its kin), see `policy_losses` for the formulas.

At the first of `updates` steps on the same samples, the run samples and scores a group of replies to each. A step then
computes the log-probabilities of the sampled tokens; tokens that the schema forced carry no loss. Random numbers depend
on seed and step alone, and replies that several steps share are part of the checkpoint, so a resumed training continues
bit for bit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mllm_tailor.core.device import upload
from mllm_tailor.core.errors import RunError
from mllm_tailor.methods.switch import adapters_off, is_switchable
from mllm_tailor.models import Length
from mllm_tailor.training.batches import Batch
from mllm_tailor.training.config import Rollout
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext
from mllm_tailor.training.objectives.cross_entropy import answer_logits
from mllm_tailor.training.objectives.policy_losses import (
    ReplyTokens,
    advantages,
    divergence,
    per_reply,
    policy_loss,
)
from mllm_tailor.training.objectives.replies import ReplyAppender, sampler_of, scored_samples, watched_values

MOST_EQUAL = 20  # steps in which no group has two different rewards, after which training stops


class RewardObjective(Objective):
    """The clipped policy objective on groups of the model's own replies."""

    def __init__(self, context: ObjectiveContext) -> None:
        labelled = scored_samples(context)
        super().__init__(context.model, [sample.unlabelled() for sample in labelled])
        settings = context.settings.reward
        assert settings is not None
        if settings.kl_weight and not is_switchable(context.model.model):
            raise RunError(
                "`train.reward.kl_weight` needs adapters that can be switched off — use a LoRA method, or leave it out"
            )
        self.settings, self.sample_replies = settings, sampler_of(context, "train.reward")
        self.appender = ReplyAppender(self.model, self.samples)
        self.longest = self.reserved_tokens = context.inputs.longest_reply
        self.updates = settings.updates
        self.labelled = labelled  # only the reward sees the labels
        self.rollouts: dict[int, list[Rollout]] = {}  # by sample
        self.first_step = -1  # at which they were sampled
        self.old: dict[tuple[int, int], Tensor] = {}  # (sample, replica) -> log-probabilities when they were sampled
        self.advantages: dict[int, Tensor] = {}
        self.counted_tokens = 0
        self.steps_alike = 0  # in a row without two different rewards in any group
        self.sums: defaultdict[str, Any] = defaultdict(float)  # numbers on the device until a step is logged

    def expand_indices(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Every sample as often as it has replies."""
        return tuple(index for index in indices for _ in range(self.settings.group_size))

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """Every sample weighs the same; `loss` contains the rest of the mean."""
        return 1.0

    def start_step(self, step: int, indices: Sequence[int], seed: int) -> None:
        """Sample and score, unless the replies of an earlier step are used again."""
        self.sums = defaultdict(float)
        first = step - step % self.updates
        if first != self.first_step:
            self._sample(first, indices, seed)
        self.advantages = {
            index: advantages(torch.tensor([[reply.reward for reply in group]]), self.settings.loss)[0]
            for index, group in self.rollouts.items()
        }
        left = [reply for group in self.rollouts.values() for reply in group if self._counts(reply)]
        self.counted_tokens = max(1, sum(len(reply.chosen) for reply in left))

    def _sample(self, step: int, indices: Sequence[int], seed: int) -> None:
        groups = self.sample_replies([self.labelled[index] for index in indices], seed)
        self.rollouts, self.first_step, self.old = dict(zip(indices, groups, strict=True)), step, {}
        alike = all(len({reply.reward for reply in group}) == 1 for group in groups)
        self.steps_alike = self.steps_alike + 1 if alike else 0
        if self.steps_alike >= MOST_EQUAL:
            raise RunError(
                f"step {step + 1}: in {MOST_EQUAL} steps in a row all replies to a sample had the same reward, so "
                "nothing can be learned — use a finer metric, a higher train.reward.temperature or a larger group_size"
            )

    def _counts(self, reply: Rollout) -> bool:
        return not (reply.truncated and self.settings.leaves_out_truncated)

    def state_dict(self) -> dict[str, Any]:
        """The replies that the next step uses again."""
        rows = [
            {**asdict(reply), "sample": index, "old": self.old[index, replica].tolist()}
            for index, group in self.rollouts.items()
            for replica, reply in enumerate(group)
            if (index, replica) in self.old
        ]
        kept = rows if self.updates > 1 else []
        return {"step": self.first_step if kept else -1, "steps_alike": self.steps_alike, "replies": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The replies of a checkpoint."""
        self.steps_alike, self.rollouts, self.old = state["steps_alike"], {}, {}
        self.first_step = state["step"]
        for row in state["replies"]:
            reply = Rollout(**{name: value for name, value in row.items() if name not in ("sample", "old")})
            group = self.rollouts.setdefault(row["sample"], [])
            self.old[row["sample"], len(group)] = torch.tensor(row["old"], dtype=torch.float32)
            group.append(reply)

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """The micro-batch's part of a step's mean, times the step's samples."""
        rows = list(replicas(indices, self.settings.group_size))
        replies = [self.rollouts[index][replica] for index, replica in rows]
        self.appender.append(batch, indices, replies)
        logits, targets, reply_of = answer_logits(self.model.model, batch)
        scaled = (logits / self.settings.temperature).log_softmax(-1)
        log_p = scaled.gather(-1, targets[:, None]).squeeze(-1)
        tokens = ReplyTokens(log_p, self._old(log_p, reply_of, rows), reply_of, len(rows))
        device = log_p.device
        advantage = upload(torch.stack([self.advantages[index][replica] for index, replica in rows]), device)
        losses = policy_loss(tokens, advantage, self.settings.loss, self.settings.clipping, self.longest)
        if self.settings.kl_weight:
            kl = divergence(log_p, self._reference(batch, targets))
            losses = losses + self.settings.kl_weight * per_reply(tokens, kl, self.settings.loss, self.longest)
            self.sums["kl"] += kl.detach().double().sum()
        self.sums["entropy"] -= (scaled.exp() * scaled).detach().double().sum()
        self.sums["tokens"] += len(targets)
        counted = upload(torch.tensor([self._counts(reply) for reply in replies]), device)
        mean_over = (
            self.counted_tokens if self.settings.loss == "dapo" else len(self.rollouts) * self.settings.group_size
        )
        return torch.where(counted, losses, 0.0).sum() * len(self.rollouts) / mean_over

    def _old(self, log_p: Tensor, reply_of: Tensor, rows: Sequence[tuple[int, int]]) -> Tensor:
        """(tokens,): what the log-probabilities were before the first update on these replies."""
        present = log_p.detach()
        for row, key in enumerate(rows):
            if key not in self.old:
                self.old[key] = present[reply_of == row]
        return torch.cat([self.old[key].to(log_p.device) for key in rows])

    @torch.no_grad()
    def _reference(self, batch: Batch, targets: Tensor) -> Tensor:
        """(tokens,): log-probabilities under the model without its adapter."""
        with adapters_off(self.model.model):
            logits, _, _ = answer_logits(self.model.model, batch)
        scaled = (logits / self.settings.temperature).log_softmax(-1)
        return scaled.gather(-1, targets[:, None]).squeeze(-1)

    def log_values(self) -> dict[str, float]:
        """Of the last step: the reward, and what the reward does not see."""
        replies = [reply for group in self.rollouts.values() for reply in group]
        rewards = torch.tensor([[reply.reward for reply in group] for group in self.rollouts.values()])
        values = {
            "reward": float(rewards.mean()),
            "reward_spread": float(rewards.std(1).mean()),
            "equal_groups": float((rewards.amax(1) == rewards.amin(1)).float().mean()),
            "entropy": float(self.sums["entropy"]) / max(1, self.sums["tokens"]),
        }
        if self.settings.kl_weight:
            values["kl"] = float(self.sums["kl"]) / max(1, self.sums["tokens"])
        values |= watched_values(replies)
        return {name: round(value, 6) for name, value in values.items()}


def replicas(indices: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Each index with the number of times it occurred before, modulo `size`: which reply of its group stands there."""
    seen: Counter[int] = Counter()
    for index in indices:
        yield index, seen[index] % size
        seen[index] += 1
