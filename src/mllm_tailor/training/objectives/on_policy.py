"""On-policy distillation: a teacher's probabilities on replies that the student samples (GKD, 2306.13649).

At every step the run samples a reply to each sample from the student as it is by then; both models read it, and the
loss is the divergence between their distributions at the tokens that the student chose. No gradient flows through the
sampling (section 3.1). Random numbers depend on seed and step alone, so a resumed training continues bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.models import Length, encode
from mllm_tailor.training.batches import Batch, collate_right, to_device
from mllm_tailor.training.config import Rollout
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext
from mllm_tailor.training.objectives.cross_entropy import answer_logits
from mllm_tailor.training.objectives.distillation import load_teacher
from mllm_tailor.training.objectives.replies import ReplyAppender, sampler_of, scored_samples, watched_values
from mllm_tailor.training.vision_cache import as_inputs


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    """(tokens,): the generalised Jensen-Shannon divergence of two logits (tokens, vocabulary), equation 1 of GKD.

    `beta` KL(teacher || mixture) + (1 - beta) KL(student || mixture), with the mixture beta teacher + (1 - beta)
    student; its limits, to which 0 and 1 are set, are KL(teacher || student) and KL(student || teacher).
    """
    log_p, log_q = (torch.log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher))
    if beta in (0, 1):
        left, right = (log_p, log_q) if beta == 0 else (log_q, log_p)
        return kl_div(left, right, reduction="none", log_target=True).sum(-1)
    mixture = torch.logaddexp(log_q + math.log(beta), log_p + math.log1p(-beta))
    to_teacher, to_student = (
        kl_div(mixture, side, reduction="none", log_target=True).sum(-1) for side in (log_q, log_p)
    )
    return beta * to_teacher + (1 - beta) * to_student


class OnPolicyDistillation(Objective):
    """A teacher's logits on replies of the student, or on labels for a share of the samples."""

    def __init__(self, context: ObjectiveContext) -> None:
        labelled = scored_samples(context)
        super().__init__(context.model, [sample.unlabelled() for sample in labelled])
        settings = context.settings.distill
        assert settings is not None
        self.settings, self.labelled = settings, labelled
        self.sample_replies = sampler_of(context, "train.distill.of: replies") if settings.sampling else None
        self.teacher = load_teacher(self.model, settings, context.dtype)
        self.appenders = [ReplyAppender(model, self.samples) for model in (self.model, self.teacher)]
        self.reserved_tokens = context.inputs.longest_reply
        self.replies: dict[int, Rollout] = {}  # by sample
        self.sampled_step = -1
        self.tokens = 0  # of the step's replies
        self.divergence: Any = 0.0  # summed over them, on the device
        self.entropy: Any = 0.0

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """Every sample weighs the same; `loss` contains the rest of the mean over tokens."""
        return 1.0

    def start_step(self, step: int, indices: Sequence[int], seed: int) -> None:
        """Sample replies, unless this step is run again."""
        self.divergence = self.entropy = 0.0
        if step == self.sampled_step:
            return
        own = [index for index in dict.fromkeys(indices) if self._is_own(index, seed)]
        self.replies = {index: self._label(self.labelled[index]) for index in indices if index not in own}
        if own and self.sample_replies is not None:
            groups = self.sample_replies([self.labelled[index] for index in own], seed)
            self.replies |= {index: group[0] for index, group in zip(own, groups, strict=True)}
        self.tokens = max(1, sum(len(self.replies[index].chosen) for index in indices))
        self.sampled_step = step

    def _is_own(self, index: int, seed: int) -> bool:
        drawn = np.random.default_rng([seed, index]).random()
        return self.sample_replies is not None and float(drawn) < self.settings.own_share

    def _label(self, sample: Conversation) -> Rollout:
        """The sample's label in place of a sampled reply."""
        encoded = encode(sample, self.model)
        tokens = encoded.ids[encoded.answer_start :].tolist()
        chosen = (encoded.labels[encoded.answer_start :] >= 0).nonzero().flatten().tolist()
        return Rollout(tokens, chosen, reward=1.0)

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """The micro-batch's part of the mean over the step's tokens, times the step's samples."""
        own, others = self.appenders
        replies = [self.replies[index] for index in indices]
        own.append(batch, indices, replies)
        student, _, _ = answer_logits(self.model.model, batch)
        with torch.no_grad():
            prompts = [encode(self.samples[index], self.teacher) for index in indices]
            shown = as_inputs(to_device(collate_right(prompts, self.teacher), self.teacher.device))
            others.append(shown, indices, replies)
            teacher, _, _ = answer_logits(self.teacher.model, shown)
        temperature = self.settings.softmax_temperature
        total = generalised_jsd(student, teacher.to(student.device), self.settings.divergence, temperature).sum()
        log_p = student.detach().log_softmax(-1)
        self.divergence += total.detach().double()
        self.entropy -= (log_p.exp() * log_p).double().sum()
        return total * len(self.replies) / self.tokens

    def log_values(self) -> dict[str, float]:
        """Of the last step: the divergence for each token, and how good the student's replies are."""
        replies = list(self.replies.values())
        values = {
            "watch/score": sum(reply.reward for reply in replies) / len(replies),
            "divergence": float(self.divergence) / self.tokens,
            "entropy": float(self.entropy) / self.tokens,
        } | watched_values(replies)
        return {name: round(value, 6) for name, value in values.items()}
