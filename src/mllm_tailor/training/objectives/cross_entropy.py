"""Cross-entropy of the answers, with logits computed only at positions that predict a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mllm_tailor.core.device import upload
from mllm_tailor.models import NO_LOSS, Length
from mllm_tailor.models.patches.last_layer import last_layer_from
from mllm_tailor.training.batches import Batch
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext


class CrossEntropy(Objective):
    """The usual objective: a mean over the step's labelled tokens."""

    def __init__(self, context: ObjectiveContext) -> None:
        super().__init__(context.model, context.samples)
        self.tokens = context.settings.loss

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """The number of labelled tokens."""
        return labelled_tokens(lengths[index], self.tokens)

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """Summed over the labelled tokens."""
        return answer_loss(self.model.model, batch)[0]


def labelled_tokens(length: Length, tokens: Literal["answer", "all"]) -> int:
    """The number of a sample's tokens that carry loss."""
    return length.supervised if tokens == "answer" else length.tokens - 1


def labelled(labels: Tensor) -> Tensor:
    """(batch, length) bool: positions whose next token carries loss."""
    predicting = torch.zeros_like(labels, dtype=torch.bool)
    predicting[:, :-1] = labels[:, 1:] != NO_LOSS
    return predicting


def answer_logits(network: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """For a batch's labelled tokens: logits (labelled, vocabulary) float32, the tokens, and the row of each.

    A hook hands the output head only the hidden states that predict a label: 30 times fewer logits for an answer of 60
    tokens after 1,800 tokens of image. It works through any wrapper and keeps what a family does to its logits. The
    last layer skips the positions before all answers too, see `models.patches.last_layer`. The labels lie on the CPU,
    wherever the model is: their number decides shapes, and the host would wait for a device to count them.
    """
    inputs = dict(batch)
    labels = inputs.pop("labels")
    length = labels.shape[1]
    rows, columns = labelled(labels).nonzero(as_tuple=True)
    start = min(columns.tolist(), default=0)  # the first position that predicts a label
    device = inputs["input_ids"].device
    targets = upload(labels[rows, columns + 1], device)
    rows, columns = upload(rows, device), upload(columns, device)

    def gather(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]  # (batch, positions, width); prompt tuning adds positions, `last_layer_from` cuts
        return (hidden[rows, columns + hidden.shape[1] - length][None], *arguments[1:])

    handle = network.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        with last_layer_from(network, start, length):
            logits = network(**inputs, use_cache=False).logits[0]  # (labelled, vocabulary)
    finally:
        handle.remove()
    return logits.float(), targets, rows


def answer_loss(network: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, int]:
    """The summed cross-entropy (nats, float32) of a batch's labelled tokens, and their number."""
    logits, targets, _ = answer_logits(network, batch)
    return functional.cross_entropy(logits, targets, reduction="sum"), targets.numel()


def answer_log_probabilities(network: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """(batch,) float32: the log-probability of each row's whole answer."""
    logits, targets, rows = answer_logits(network, batch)
    per_token = -functional.cross_entropy(logits, targets, reduction="none")
    return per_token.new_zeros(len(batch["labels"])).index_add(0, rows, per_token)


def count_labels(labels: Tensor) -> int:
    """Tokens that carry loss in one sample's (length,) labels; the first token is predicted by nothing."""
    return int((labels[1:] != NO_LOSS).sum())
