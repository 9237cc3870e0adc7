"""Choose among all replies there can be by their likelihood, where a task has a closed set of them.

Picture and prompt are read once; all replies are then fed side by side behind that one reading. What is compared is the
log probability of a whole reply and of ending it, so the shares over all replies are the model's own, given that the
reply is one of them. Writing token by token can go wrong where it begins: a first token shared by many replies, each
improbable, may beat the first token of the best reply.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.models import Encoded, OpenModel
from mllm_tailor.models.encode import NO_LOSS
from mllm_tailor.predicting.cache import append_columns, repack
from mllm_tailor.predicting.constrain import Vocabulary
from mllm_tailor.predicting.decode import Decoder
from mllm_tailor.predicting.vision import FeatureMemory
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import ChoiceTask

ROWS = 64  # replies side by side; samples are read together as far as these suffice


def choose(
    model: OpenModel,
    task: ChoiceTask,
    samples: Sequence[Sample],
    settings: Predict,
    *,
    on_done: Callable[[Prediction], None] | None = None,
    memory: FeatureMemory | None = None,
) -> list[Prediction]:
    """The likeliest reply to each sample, in their order; its confidence is its share of the probability of all.

    A sample that cannot be read becomes a prediction without text whose `problem` says why.
    """
    chooser = _Chooser(model, task, settings, memory)
    found: list[Prediction] = []
    was_training = model.model.training
    model.model.eval()
    try:
        for start in track(range(0, len(samples), chooser.together), "Comparing replies"):
            for prediction in chooser.choose(samples[start : start + chooser.together]):
                found.append(prediction)
                if on_done is not None:
                    on_done(prediction)
    finally:
        model.model.train(was_training)
    return found


class _Chooser:
    def __init__(self, model: OpenModel, task: ChoiceTask, settings: Predict, memory: FeatureMemory | None) -> None:
        self.model, self.task = model, task
        self.replies = list(task.choices())
        self.together = max(1, min(settings.batch, ROWS // len(self.replies)))
        width = model.model.config.get_text_config().vocab_size
        vocabulary = Vocabulary(model.tokenizer, width, sorted(model.stop_ids))
        self.decoder = Decoder(model, vocabulary, self.together, memory=memory)
        self.reply_ids: list[list[int]] = []  # of each reply with what ends it

    def choose(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Predictions of a few samples, in their order."""
        started = time.perf_counter()
        prompts: list[Encoded] = []
        problems: dict[int, str] = {}
        for place, sample in enumerate(samples):
            try:
                prompts.append(self._encode(sample))
            except DataError as error:
                problems[place] = str(error)
        scores = iter(self.score(prompts) if prompts else ())
        seconds = (time.perf_counter() - started) / len(samples)
        for place, sample in enumerate(samples):
            if place in problems:
                yield Prediction(sample.id, "", problem=problems[place])
                continue
            shares = next(scores).softmax(-1)
            best = int(shares.argmax())
            reply = self.task.parse(self.replies[best])
            confidence = dict.fromkeys(reply.fields, float(shares[best]))
            yield Prediction(sample.id, self.replies[best], reply.fields, confidence, seconds, reply.problem)

    @torch.inference_mode()
    def score(self, prompts: Sequence[Encoded]) -> Tensor:
        """(prompts, replies) float32: the log probability of each reply."""
        count, width = len(self.replies), max(map(len, self.reply_ids))
        held, _, last, shifts = self.decoder.read(prompts)
        device = self.model.device
        ids = torch.full((count, width), self.model.pad_id)
        real = torch.zeros((count, width), dtype=torch.long)
        for line, reply in enumerate(self.reply_ids):  # padded behind: what is not there yet changes nothing before it
            ids[line, : len(reply)], real[line, : len(reply)] = torch.tensor(reply), 1
        ids, real = (tensor.repeat(len(prompts), 1).to(device) for tensor in (ids, real))
        starts = [prompt.length + shift for prompt, shift in zip(prompts, shifts, strict=True)]
        rows = [line for line in range(len(prompts)) for _ in range(count)]
        wide = repack([(held, rows)])
        logits = self.model.model(
            input_ids=ids,
            attention_mask=append_columns(wide, real),
            position_ids=torch.tensor(starts, device=device)[rows][:, None] + torch.arange(width, device=device),
            past_key_values=wide.cache,
            use_cache=True,
            logits_to_keep=width,
            **self.decoder.pictures([prompts[line] for line in rows], width),
        ).logits
        ahead = torch.cat([last[rows, -1:], logits[:, :-1]], dim=1).float()  # what foretells each token of the reply
        each = (ahead.gather(-1, ids[..., None]).squeeze(-1) - ahead.logsumexp(-1)) * real
        return each.sum(-1).view(len(prompts), count).cpu()

    def _encode(self, sample: Sample) -> Encoded:
        if "problem" in sample.extra:
            raise DataError(str(sample.extra["problem"]))
        question = self.task.phrase(sample.unlabelled())
        prompt = self.model.encode(question)
        if not self.reply_ids:  # the template closes every reply alike, whatever was asked
            self.reply_ids = [self._reply(question, reply) for reply in self.replies]
        longest = max(map(len, self.reply_ids))
        if prompt.length + longest > self.model.context:
            raise DataError(
                f"{question.source or question.id}: prompt and reply fill the model's context of "
                f"{self.model.context:,} tokens — use fewer tiles (model.tiles.max) or frames (model.frames)"
            )
        return prompt

    def _reply(self, question: Sample, reply: str) -> list[int]:
        labels = self.model.encode(replace(question, answer=reply)).labels
        return labels[labels != NO_LOSS].tolist()
