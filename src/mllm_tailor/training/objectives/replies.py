"""Sampled replies in a training batch: appended to right-padded prompts, with loss on the tokens that were chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import upload
from mllm_tailor.core.errors import RunError
from mllm_tailor.models import NO_LOSS, LoadedModel, measure_length
from mllm_tailor.training.batches import LENGTH_MULTIPLE, Batch
from mllm_tailor.training.config import Rollout, SampleReplies
from mllm_tailor.training.objectives.base import ObjectiveContext
from mllm_tailor.training.trainable import set_train_mode


class ReplyAppender:
    """Appends replies to the prompts of a batch. `prompts` are all that batches are made of."""

    def __init__(self, model: LoadedModel, prompts: Sequence[Conversation]) -> None:
        self.model, self.prompts = model, prompts
        self.lengths: dict[int, int] = {}  # tokens of prompts, where a batch has no mask that tells

    def append(self, batch: Batch, indices: Sequence[int], replies: Sequence[Rollout]) -> None:
        """Add its reply to each row, whose prompt `indices` names; labels are the tokens that were chosen."""
        prompts = [self._prompt_length(batch, row, index) for row, index in enumerate(indices)]
        width = max(length + len(reply.tokens) for length, reply in zip(prompts, replies, strict=True))
        width = max(width, batch["input_ids"].shape[1])
        longer = width - batch["input_ids"].shape[1]
        if self.model.device.type == "cpu":
            longer += -width % LENGTH_MULTIPLE
        ids = pad(batch["input_ids"], (0, longer), value=self.model.pad_id)
        labels = torch.full(ids.shape, NO_LOSS, dtype=ids.dtype)  # on the CPU
        token_wise = [name for name in (*self.model.family.token_wise, "attention_mask") if name in batch]
        for name in token_wise:
            batch[name] = pad(batch[name], (0, 0) * (batch[name].dim() - 2) + (0, longer))
        for row, (length, reply) in enumerate(zip(prompts, replies, strict=True)):
            end = length + len(reply.tokens)
            tokens = torch.tensor(reply.tokens, dtype=ids.dtype)
            ids[row, length:end] = upload(tokens, ids.device)
            chosen = torch.tensor(reply.chosen, dtype=torch.int64)
            labels[row, length + chosen] = tokens[chosen]
            for name in token_wise:
                last = batch[name][row, length - 1]
                kind = torch.full_like(last, self.model.family.reply_kind) if last.dim() == 0 else last
                batch[name][row, length:end] = 1 if name == "attention_mask" else kind
        batch["input_ids"], batch["labels"] = ids, labels

    def _prompt_length(self, batch: Batch, row: int, index: int) -> int:
        if "attention_mask" in batch:
            return int(batch["attention_mask"][row].sum())
        if index not in self.lengths:
            self.lengths[index] = measure_length(self.prompts[index], self.model).tokens
        return self.lengths[index]


def scored_samples(context: ObjectiveContext) -> list[Conversation]:
    """The labelled samples whose replies can be scored."""
    scored = context.inputs.rewarded
    return [sample for sample in context.samples if scored is None or sample.id in scored]


def sampler_of(context: ObjectiveContext, setting: str) -> SampleReplies:
    """What samples replies for the objective of `setting`; the model is in evaluation mode meanwhile.

    Raises:
        RunError: outside a run.
    """
    model, sample_replies = context.model, context.inputs.sample_replies
    if sample_replies is None:
        raise RunError(f"`{setting}` needs a run, which samples and scores replies — use `tailor run`")

    def sample(conversations: Sequence[Conversation], seed: int) -> list[list[Rollout]]:
        was_training = model.model.training
        model.model.eval()
        groups = sample_replies(conversations, seed)
        if was_training:
            set_train_mode(model)
        return groups

    return sample


def watched_values(replies: Sequence[Rollout]) -> dict[str, float]:
    """Means over replies of what an objective does not see."""
    values = {
        "reply_tokens": sum(len(reply.tokens) for reply in replies) / len(replies),
        "truncated": sum(reply.truncated for reply in replies) / len(replies),
    }
    for name in dict.fromkeys(name for reply in replies for name in reply.watched):
        known = [reply.watched[name] for reply in replies if name in reply.watched]
        values[f"watch/{name}"] = sum(known) / len(known)
    return values
