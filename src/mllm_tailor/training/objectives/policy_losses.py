"""Advantages of sampled replies and policy losses, as pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mllm_tailor.recipe import Clipping

SPREAD = 1e-4  # added to a group's standard deviation


@dataclass(frozen=True)
class ReplyTokens:
    """The sampled tokens of several replies, one after the other."""

    log_p: Tensor  # (tokens,) float32 under the model that is trained
    old_log_p: Tensor  # (tokens,) under the model that sampled them
    reply: Tensor  # (tokens,) int64: which reply each is of
    replies: int  # how many there are; one may have no tokens

    def total(self, values: Tensor) -> Tensor:
        """(replies,): the sum over each reply's tokens."""
        return values.new_zeros(self.replies).index_add(0, self.reply, values)

    @property
    def counts(self) -> Tensor:
        """(replies,) float32: tokens of each, 1 where there are none."""
        return self.total(torch.ones_like(self.log_p)).clamp(min=1)


def advantages(rewards: Tensor, loss: str) -> Tensor:
    """(groups, size): how much better each reply is than its group.

    GRPO (2402.03300, section 4.1.2) divides by the group's standard deviation (here that of a sample, n - 1); Dr. GRPO
    (2503.20783) does not; RLOO (2402.14740) subtracts the mean of the others. A group of equal rewards has
    advantages of exactly zero: rounding would otherwise give all of its replies the same push.
    """
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    centred = rewards - rewards.mean(1, keepdim=True)
    if loss == "rloo":
        centred = centred * rewards.shape[1] / (rewards.shape[1] - 1)
    elif loss != "dr_grpo":
        centred = centred / (rewards.std(1, keepdim=True) + SPREAD)
    return torch.where(equal, torch.zeros_like(centred), centred)


def policy_loss(tokens: ReplyTokens, advantage: Tensor, loss: str, clipping: Clipping, longest: int) -> Tensor:
    """(replies,): the loss of each reply. A step averages over its replies, dapo over all their tokens.

    `advantage` is (replies,); `longest` is the most tokens that a reply may have.

    - grpo: the mean over a reply's tokens of the clipped objective (2402.03300, equation 3).
    - dapo: the sum over its tokens, all tokens of a step weighing the same (2503.14476, equation 8).
    - dr_grpo: that sum over a constant length (2503.20783).
    - gspo: the ratio of whole replies, normalised by length (2507.18071, equations 5 and 7).
    - rloo: the ratio of whole replies (2402.14740).
    """
    difference = tokens.log_p - tokens.old_log_p
    if loss in ("gspo", "rloo"):
        total = tokens.total(difference)
        ratio = (total / tokens.counts if loss == "gspo" else total).exp()
        return -_clipped(ratio, advantage, clipping)
    return per_reply(tokens, -_clipped(difference.exp(), advantage[tokens.reply], clipping), loss, longest)


def per_reply(tokens: ReplyTokens, values: Tensor, loss: str, longest: int) -> Tensor:
    """(replies,): values of tokens, weighed within each reply as its loss weighs them."""
    if loss == "dapo":
        return tokens.total(values)
    return tokens.total(values) / (longest if loss == "dr_grpo" else tokens.counts)


def divergence(log_p: Tensor, reference: Tensor) -> Tensor:
    """(tokens,): the estimate of KL(p || q) that is never negative (Schulman 2020, k3); `reference` is log q."""
    difference = reference - log_p
    return torch.expm1(difference) - difference


def _clipped(ratio: Tensor, advantage: Tensor, clipping: Clipping) -> Tensor:
    """PPO's objective (1707.06347, equation 7)."""
    bounded = ratio.clamp(1 - clipping.low, 1 + clipping.high)
    return torch.minimum(ratio * advantage, bounded * advantage)
