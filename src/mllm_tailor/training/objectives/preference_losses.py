"""Preference losses as pure functions of the log-probabilities of answers. All of them are summed over their pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of whole answers; every tensor is (answers,) float32."""

    log_p: Tensor  # under the model that is trained
    log_q: Tensor  # under the reference: the model before the first step
    tokens: Tensor  # of each answer

    @property
    def log_ratio(self) -> Tensor:
        """log p - log q; times beta it is DPO's implicit reward."""
        return self.log_p - self.log_q

    @property
    def mean_log_p(self) -> Tensor:
        """Log-probability per token."""
        return self.log_p / self.tokens


def dpo(chosen: Answers, rejected: Answers, beta: float) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, 2305.18290, equation 7)."""
    return -logsigmoid(beta * (chosen.log_ratio - rejected.log_ratio)).sum()


def quality(chosen: Answers, rejected: Answers, beta: float, shift: float) -> Tensor:
    """Whether an answer is good by itself: BCO (Jung et al. 2024, 2404.04656), MPO's quality loss.

    `shift` is the mean reward so far, above which an answer counts as good.
    """
    good = logsigmoid(beta * chosen.log_ratio - shift)
    bad = logsigmoid(shift - beta * rejected.log_ratio)
    return -(good + bad).sum()


def likelihood(chosen: Answers) -> Tensor:
    """Negative log-likelihood per token of the chosen answers: the generation loss of MPO (2411.10442)."""
    return -chosen.mean_log_p.sum()


def simpo(chosen: Answers, rejected: Answers, beta: float, margin: float) -> Tensor:
    """SimPO (Meng et al. 2024, 2405.14734): log-probabilities per token, a margin, and no reference."""
    return -logsigmoid(beta * (chosen.mean_log_p - rejected.mean_log_p) - margin).sum()


def orpo(chosen: Answers, rejected: Answers, weight: float) -> Tensor:
    """ORPO (Hong et al. 2024, 2403.07691): likelihood and odds ratio at once, no reference."""
    odds_ratio = _log_odds(chosen.mean_log_p) - _log_odds(rejected.mean_log_p)
    return likelihood(chosen) - weight * logsigmoid(odds_ratio).sum()


def kto(answers: Answers, is_chosen: Tensor, beta: float, divergence: float | Tensor) -> Tensor:
    """KTO (Ethayarajh et al. 2024, 2402.01306), for answers that need not come in pairs.

    `is_chosen` is (answers,) bool; `divergence` is z_0, the estimated KL divergence of the model from the reference,
    at least 0 and without a gradient.
    """
    gain = torch.where(is_chosen, 1.0, -1.0) * (answers.log_ratio - divergence)
    return (1 - torch.sigmoid(beta * gain)).sum()


def _log_odds(log_probability: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p, exact near both ends; p = 1 is taken for the largest float32 below it."""
    below = log_probability.clamp(max=-torch.finfo(torch.float32).eps)
    inverse = torch.where(below > -math.log(2), torch.log(-torch.expm1(below)), torch.log1p(-torch.exp(below)))
    return below - inverse
