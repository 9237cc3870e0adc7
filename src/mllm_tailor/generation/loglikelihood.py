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

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation.constrain import Vocabulary
from mllm_tailor.generation.engine import GenerationEngine
from mllm_tailor.generation.kv_cache import append_columns, compact
from mllm_tailor.models import Encoded, LoadedModel, encode
from mllm_tailor.models.encoded import NO_LOSS
from mllm_tailor.models.vision_cache import VisionFeatureCache
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import ChoiceTask

ROWS = 64  # replies side by side; samples are read together as far as these suffice


def choose(
    model: LoadedModel,
    task: ChoiceTask,
    samples: Sequence[Sample],
    settings: Predict,
    *,
    on_done: Callable[[Prediction], None] | None = None,
    memory: VisionFeatureCache | None = None,
) -> list[Prediction]:
    """The likeliest reply to each sample, in their order; its confidence is its share of the probability of all.

    A sample that cannot be read becomes a prediction without text whose `problem` says why.
    """
    chooser = _Chooser(model, task, settings, memory, most=max((_count(task, sample) for sample in samples), default=1))
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


def _count(task: ChoiceTask, sample: Sample) -> int:
    """Replies to choose from; 1 where the sample is at fault, which is said when its turn comes."""
    try:
        return len(task.choices(sample))
    except DataError:
        return 1


class _Chooser:
    def __init__(
        self, model: LoadedModel, task: ChoiceTask, settings: Predict, memory: VisionFeatureCache | None, most: int
    ) -> None:
        """`most`: replies a sample may choose from."""
        self.model, self.task = model, task
        self.together = max(1, min(settings.batch_size, ROWS // most))
        width = model.model.config.get_text_config().vocab_size
        vocabulary = Vocabulary(model.tokenizer, width, sorted(model.stop_ids))
        self.decoder = GenerationEngine(model, vocabulary, self.together, memory=memory)
        self.reply_ids: dict[str, list[int]] = {}  # of each reply with what ends it

    def choose(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Predictions of a few samples, in their order."""
        started = time.perf_counter()
        asked: list[tuple[Encoded, Sequence[str]]] = []
        problems: dict[int, str] = {}
        for place, sample in enumerate(samples):
            try:
                asked.append(self.encode(sample))
            except DataError as error:
                problems[place] = str(error)
        scores = iter(zip(self.score(asked), asked, strict=True) if asked else ())
        seconds = (time.perf_counter() - started) / len(samples)
        for place, sample in enumerate(samples):
            if place in problems:
                yield Prediction(sample.id, "", problem=problems[place])
                continue
            found, (_, replies) = next(scores)
            shares = found.softmax(-1)
            best = int(shares.argmax())
            reply = self.task.parse(replies[best])
            confidence = dict.fromkeys(reply.fields, float(shares[best]))
            yield Prediction(sample.id, replies[best], reply.fields, confidence, seconds, reply.problem)

    @torch.inference_mode()
    def score(self, asked: Sequence[tuple[Encoded, Sequence[str]]]) -> list[Tensor]:
        """For each prompt the log probabilities (replies,) float32 of its replies."""
        prompts = [prompt for prompt, _ in asked]
        replies = [self.reply_ids[reply] for _, own in asked for reply in own]
        held, _, last, shifts = self.decoder.read(prompts)
        device = self.model.device
        width = max(map(len, replies))
        ids = torch.full((len(replies), width), self.model.pad_id)
        real = torch.zeros((len(replies), width), dtype=torch.long)
        for line, reply in enumerate(replies):  # padded behind: what is not there yet changes nothing before it
            ids[line, : len(reply)], real[line, : len(reply)] = torch.tensor(reply), 1
        ids, real = ids.to(device), real.to(device)
        starts = [prompt.length + shift for prompt, shift in zip(prompts, shifts, strict=True)]
        rows = [line for line, (_, own) in enumerate(asked) for _ in own]
        wide = compact([(held, rows)])
        logits = self.model.model(
            input_ids=ids,
            attention_mask=append_columns(wide, real),
            position_ids=torch.tensor(starts, device=device)[rows][:, None] + torch.arange(width, device=device),
            **{self.decoder.cache_name: wide.cache},
            use_cache=True,
            logits_to_keep=width,
            **self.decoder.pictures([prompts[line] for line in rows], width),
        ).logits
        ahead = torch.cat([last[rows, -1:], logits[:, :-1]], dim=1).float()  # what foretells each token of the reply
        each = (ahead.gather(-1, ids[..., None]).squeeze(-1) - ahead.logsumexp(-1)) * real
        return list(each.sum(-1).cpu().split([len(own) for _, own in asked]))

    def encode(self, sample: Sample) -> tuple[Encoded, Sequence[str]]:
        """A prompt and the replies to choose from.

        Raises:
            DataError: naming the row, for what cannot be read or is too long.
        """
        if "problem" in sample.extra:
            raise DataError(str(sample.extra["problem"]))
        question, replies = self.task.phrase(sample.unlabelled()), self.task.choices(sample)
        prompt = encode(question, self.model)
        for reply in replies:  # the template closes every reply alike, whatever was asked
            if reply not in self.reply_ids:
                self.reply_ids[reply] = self._reply(question, reply)
        longest = max(len(self.reply_ids[reply]) for reply in replies)
        if prompt.length + longest > self.model.context:
            raise DataError(
                f"{question.name}: prompt and reply fill the model's context of "
                f"{self.model.context:,} tokens — use fewer tiles (model.tiles.max) or frames (model.frames)"
            )
        return prompt, replies

    def _reply(self, question: Conversation, reply: str) -> list[int]:
        labels = encode(replace(question, answer=reply), self.model).labels
        return labels[labels != NO_LOSS].tolist()
