"""Preference tuning as a stage after ordinary tuning: the right answer against a wrong one of the model itself.

The reference q of DPO, MPO and KTO is the model before the first step. Its log-probabilities are computed once and kept
on disk, so training needs no second model in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import upload
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.progress import track
from mllm_tailor.models import NO_LOSS, Length
from mllm_tailor.models.vision_cache import CacheEntry, VisionFeatureCache
from mllm_tailor.training.batches import Batch, BatchSource, to_device
from mllm_tailor.training.objectives import preference_losses as losses
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext, eval_no_grad
from mllm_tailor.training.objectives.cross_entropy import answer_log_probabilities
from mllm_tailor.training.objectives.preference_losses import Answers
from mllm_tailor.training.precision import autocast
from mllm_tailor.training.vision_cache import as_inputs

REFERENCE = "reference"  # names the file of log q


class ReferencedAnswers(Objective):
    """Answers whose log-probabilities under the reference are known."""

    needs_reference = True

    def __init__(self, context: ObjectiveContext, samples: Sequence[Conversation]) -> None:
        super().__init__(context.model, samples)
        assert context.settings.prefer is not None
        self.kind = context.settings.prefer.loss
        self.weights = context.settings.prefer.weights
        self.bf16 = context.bf16
        self.reference = torch.zeros(len(samples))  # log q of every answer

    def prepare(self, source: BatchSource, folder: Path, chunks: Sequence[tuple[int, ...]]) -> None:
        """Compute log q of all answers, or read it from the file of an earlier call."""
        if not self.needs_reference:
            return
        kept = VisionFeatureCache(limit=0, folder=folder)  # with a checksum
        if (entry := kept.get(REFERENCE)) is not None:
            self.reference = entry.tensors["log_probabilities"]
            return
        device = self.model.device
        with eval_no_grad(self.model):
            for indices in track(chunks, "Computing reference log-probabilities"):
                batch = as_inputs(to_device(source.batch(indices, 0), device))
                with autocast(device, bf16=self.bf16):
                    self.reference[list(indices)] = answer_log_probabilities(self.model.model, batch).cpu()
        kept.put(REFERENCE, CacheEntry({"log_probabilities": self.reference}))

    def answers(self, batch: Batch, indices: Sequence[int]) -> Answers:
        """The answers of a micro-batch, in its order."""
        log_p = answer_log_probabilities(self.model.model, batch)
        log_q = upload(self.reference[list(indices)], log_p.device)
        return Answers(log_p, log_q, upload((batch["labels"] != NO_LOSS).sum(dim=1), log_p.device))


class PairPreference(ReferencedAnswers):
    """Pairs of a chosen and a rejected answer: DPO, MPO, ORPO, SimPO. Both are in the same micro-batch."""

    def __init__(self, context: ObjectiveContext) -> None:
        wrong = wrong_answers(context)
        chosen = [sample for sample in context.samples if sample.id in wrong]
        super().__init__(context, [*chosen, *(_with_answer(sample, wrong[sample.id], "wrong") for sample in chosen)])
        self.num_samples = len(chosen)
        self.needs_reference = self.kind in ("dpo", "mpo")
        self.rewards = RunningMean()

    def expand_indices(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The chosen answers, then the rejected ones."""
        return (*indices, *(index + self.num_samples for index in indices))

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """Every pair weighs the same."""
        return 1.0

    def start_step(self, step: int, indices: Sequence[int], seed: int) -> None:
        """Forget rewards of a step that was begun and not finished."""
        self.rewards.clear()

    def end_step(self) -> None:
        """The rewards of this step count from the next one on."""
        self.rewards.commit()

    def state_dict(self) -> dict[str, Any]:
        """The mean reward so far."""
        return {"rewards": self.rewards.mean, "counted": self.rewards.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The mean reward of a checkpoint."""
        self.rewards = RunningMean(state["rewards"], state["counted"])

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """Summed over the pairs."""
        answers, half = self.answers(batch, indices), len(indices) // 2
        chosen = Answers(answers.log_p[:half], answers.log_q[:half], answers.tokens[:half])
        rejected = Answers(answers.log_p[half:], answers.log_q[half:], answers.tokens[half:])
        loss = self._preference(chosen, rejected)
        return loss + self.weights.answer * losses.likelihood(chosen)

    def _preference(self, chosen: Answers, rejected: Answers) -> Tensor:
        weights = self.weights
        if self.kind == "simpo":
            return losses.simpo(chosen, rejected, weights.beta, weights.margin)
        if self.kind == "orpo":
            return losses.orpo(chosen, rejected, weights.beta)
        preferred = losses.dpo(chosen, rejected, weights.beta)
        if self.kind == "dpo":
            return preferred
        self.rewards.add(weights.beta * torch.cat([chosen.log_ratio, rejected.log_ratio]))
        judged = losses.quality(chosen, rejected, weights.beta, self.rewards.mean)
        return (1 - weights.quality) * preferred + weights.quality * judged


class KTO(ReferencedAnswers):
    """Every right answer and every wrong one by itself, each against the divergence from the reference.

    That divergence is estimated, as in the paper, from answers to the wrong question: each sample's prompt with the
    next sample's answer, over the samples of a step.
    """

    needs_two_passes = True

    def __init__(self, context: ObjectiveContext) -> None:
        wrong, right = wrong_answers(context), list(context.samples)
        if len(right) < 2:
            raise RunError("`train.prefer.loss: kto` needs two training samples at least — use `dpo`")
        others = [*right[1:], right[0]]
        rejected = [index for index, sample in enumerate(right) if sample.id in wrong]
        self.rejected = {index: len(right) + number for number, index in enumerate(rejected)}
        self.first_mismatched = len(right) + len(rejected)
        super().__init__(
            context,
            [
                *right,
                *(_with_answer(right[index], wrong[right[index].id], "wrong") for index in rejected),
                *(
                    _with_answer(sample, other.answer or "", "other")
                    for sample, other in zip(right, others, strict=True)
                ),
            ],
        )
        self.num_samples = len(right)
        self.divergences: list[Tensor] = []  # of this step's mismatched answers

    def expand_indices(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The right answers, the wrong ones that exist, and the mismatched ones."""
        wrong = (self.rejected[index] for index in indices if index in self.rejected)
        return (*indices, *wrong, *(self.first_mismatched + index for index in indices))

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """Every answer weighs the same."""
        return 2.0 if index in self.rejected else 1.0

    def start_step(self, step: int, indices: Sequence[int], seed: int) -> None:
        """Begin a new estimate of the divergence."""
        self.divergences = []

    def precompute(self, batch: Batch, indices: tuple[int, ...]) -> None:
        """Log ratios of the mismatched answers."""
        count = sum(index < self.first_mismatched for index in indices)  # they stand behind all others
        self.divergences.append(self.answers(batch, indices).log_ratio[count:])

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """Summed over right and wrong answers."""
        divergence = torch.cat(self.divergences).mean().clamp(min=0)
        answers = self.answers(batch, indices)
        count = sum(index < self.first_mismatched for index in indices)
        judged = Answers(answers.log_p[:count], answers.log_q[:count], answers.tokens[:count])
        chosen = sum(index < self.num_samples for index in indices)  # they stand before the wrong ones
        is_chosen = torch.arange(count, device=judged.log_p.device) < chosen
        loss = losses.kto(judged, is_chosen, self.weights.beta, divergence)
        right = Answers(judged.log_p[:chosen], judged.log_q[:chosen], judged.tokens[:chosen])
        return loss + self.weights.answer * losses.likelihood(right)


def make_preference(context: ObjectiveContext) -> ReferencedAnswers:
    """The objective of `train.prefer.loss`."""
    assert context.settings.prefer is not None
    return KTO(context) if context.settings.prefer.loss == "kto" else PairPreference(context)


def wrong_answers(context: ObjectiveContext) -> Mapping[str, str]:
    """Sample id -> a wrong answer to it.

    Raises:
        RunError: when there is none.
    """
    samples = {sample.id for sample in context.samples}
    wrong = {key: answer for key, answer in (context.inputs.rejected or {}).items() if key in samples}
    if not wrong:
        raise RunError(
            "`train.prefer`: the model answers every training sample correctly, so there is nothing to prefer — "
            "leave the stage out, or give it more data"
        )
    return wrong


@dataclass
class RunningMean:
    """A mean over finished steps: MPO's reward shift. What an unfinished step adds does not count yet."""

    mean: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        self.pending: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Values of the present step."""
        self.pending.append(values.detach())

    def clear(self) -> None:
        """Forget the present step."""
        self.pending = []

    def commit(self) -> None:
        """Count the present step."""
        if self.pending:
            values = torch.cat(self.pending).double()
            self.count += len(values)
            self.mean += (float(values.mean()) - self.mean) * len(values) / self.count
        self.clear()


def _with_answer(item: Conversation, answer: str, mark: str) -> Conversation:
    return replace(item, sample=replace(item.sample, id=f"{item.id}#{mark}"), answer=answer)
