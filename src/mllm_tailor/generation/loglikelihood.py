"""Choose among a closed set of replies by their log-likelihood.

Image and prompt are read once; all replies are then fed side by side after that prefill. A reply is scored by the
log-probability of all its tokens, including the one that ends it, so the shares over all replies are the model's
distribution given that the reply is one of them. Greedy decoding can fail at the first token: one that many improbable
replies share may beat the first token of the best reply. Where a sample is read in several framings of its images, the
shares are averaged over them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation.confidence import DIGITS
from mllm_tailor.generation.kv_cache import append_columns, compact
from mllm_tailor.generation.prefill import Prefill
from mllm_tailor.generation.voting import in_framings
from mllm_tailor.models import Encoded, LoadedModel, encode
from mllm_tailor.models.encoded import NO_LOSS
from mllm_tailor.models.vision_cache import VisionFeatureCache
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import ChoiceTask

ROWS = 64  # replies side by side; as many samples are processed together as this allows


def choose(
    model: LoadedModel,
    task: ChoiceTask,
    samples: Sequence[Sample],
    settings: Predict,
    *,
    on_done: Callable[[Prediction], None] | None = None,
    cache: VisionFeatureCache | None = None,
) -> list[Prediction]:
    """The most likely reply to each sample, in their order; `raw` holds its share of all replies' probability.

    A sample that cannot be read becomes a prediction without text whose `problem` states why.
    """
    most = max((_count_choices(task, sample) for sample in samples), default=1)
    together = max(1, min(settings.batch_size, ROWS // (most * settings.framings)))
    scorer = LikelihoodScorer(model, task, cache, framings=settings.framings)
    predictions: list[Prediction] = []
    was_training = model.model.training
    model.model.eval()
    try:
        for start in track(range(0, len(samples), together), "Scoring replies"):
            for prediction in scorer.predict(samples[start : start + together]):
                predictions.append(prediction)
                if on_done is not None:
                    on_done(prediction)
    finally:
        model.model.train(was_training)
    return predictions


def _count_choices(task: ChoiceTask, sample: Sample) -> int:
    """Replies to choose from; 1 for an invalid sample, which is reported when it is processed."""
    try:
        return len(task.choices(sample))
    except DataError:
        return 1


@dataclass(frozen=True)
class ChoicePrompt:
    """A question with its closed set of replies."""

    framings: tuple[Encoded, ...]  # the prompt in each framing of its images
    replies: Sequence[str]

    @property
    def length(self) -> int:
        """Tokens of the prompt in all framings."""
        return sum(prompt.length for prompt in self.framings)


@dataclass(frozen=True)
class Choice:
    """The most likely reply, and what every reply is given."""

    reply: str
    logprob: float
    scores: dict[str, float]  # raw scores of the reply
    shares: tuple[tuple[str, float], ...]  # the probability of every reply, given that it is one of them


class LikelihoodScorer:
    """Scores every possible reply to a few samples at a time."""

    def __init__(
        self, model: LoadedModel, task: ChoiceTask, cache: VisionFeatureCache | None = None, *, framings: int = 1
    ) -> None:
        self.model, self.task, self.framings = model, task, framings
        self.prefill = Prefill(model, cache)
        self.reply_ids: dict[str, list[int]] = {}  # of each reply with the token that ends it

    def predict(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Predictions in the order of the samples."""
        started = time.perf_counter()
        prompts: list[ChoicePrompt] = []
        problems: dict[int, str] = {}
        for index, sample in enumerate(samples):
            try:
                prompts.append(self.encode(sample))
            except DataError as error:
                problems[index] = str(error)
        choices = iter(self.choose(prompts) if prompts else ())
        seconds = (time.perf_counter() - started) / len(samples)
        for index, sample in enumerate(samples):
            if index in problems:
                yield Prediction(sample.id, "", problem=problems[index])
                continue
            yield self.prediction(sample.id, next(choices), seconds)

    def prediction(self, sample_id: str, choice: Choice, seconds: float = 0.0) -> Prediction:
        """The prediction of a sample for which a reply was chosen."""
        reply = self.task.parse(choice.reply)
        raw = {name: dict(choice.scores) for name in reply.fields}
        return Prediction(sample_id, choice.reply, reply.fields, seconds=seconds, problem=reply.problem, raw=raw)

    def choose(self, prompts: Sequence[ChoicePrompt]) -> list[Choice]:
        """The most likely reply to each prompt; its share is averaged over the framings."""
        scores = iter(self.score([(encoded, prompt.replies) for prompt in prompts for encoded in prompt.framings]))
        return [self._choice(prompt, [next(scores) for _ in prompt.framings]) for prompt in prompts]

    def _choice(self, prompt: ChoicePrompt, scores: Sequence[Tensor]) -> Choice:
        framings = torch.stack(list(scores)).softmax(-1)  # (framings, replies)
        shares = framings.mean(0)
        best = int(shares.argmax())
        raw = {"mean": round(float(shares[best]), DIGITS)}
        if self.framings > 1:
            raw["framings"] = round(float((framings.argmax(-1) == best).float().mean()), DIGITS)
        shown = tuple(zip(prompt.replies, shares.tolist(), strict=True))
        return Choice(prompt.replies[best], float(shares[best].log()), raw, shown)

    @torch.inference_mode()
    def score(self, prompts: Sequence[tuple[Encoded, Sequence[str]]]) -> list[Tensor]:
        """For each prompt the log-probabilities (replies,) float32 of its replies."""
        encoded = [prompt for prompt, _ in prompts]
        replies = [self.reply_ids[reply] for _, choices in prompts for reply in choices]
        result = self.prefill.read(encoded)
        device = self.model.device
        width = max(map(len, replies))
        ids = torch.full((len(replies), width), self.model.pad_id)
        real = torch.zeros((len(replies), width), dtype=torch.long)
        for row, reply in enumerate(replies):  # right-padded: in a causal model padding changes nothing before it
            ids[row, : len(reply)], real[row, : len(reply)] = torch.tensor(reply), 1
        ids, real = ids.to(device), real.to(device)
        starts = [prompt.length + shift for prompt, shift in zip(encoded, result.shifts, strict=True)]
        rows = [row for row, (_, choices) in enumerate(prompts) for _ in choices]  # the prompt of each reply
        kv = compact([(result.kv, rows)])
        logits = self.model.model(
            input_ids=ids,
            attention_mask=append_columns(kv, real),
            position_ids=torch.tensor(starts, device=device)[rows][:, None] + torch.arange(width, device=device),
            **{self.prefill.cache_name: kv.cache},
            use_cache=True,
            logits_to_keep=width,
            **self.prefill.cross_attention_inputs([encoded[row] for row in rows], kv, width),
        ).logits
        predicting = torch.cat([result.logits[rows, -1:], logits[:, :-1]], dim=1).float()
        logprobs = (predicting.gather(-1, ids[..., None]).squeeze(-1) - predicting.logsumexp(-1)) * real
        return list(logprobs.sum(-1).cpu().split([len(choices) for _, choices in prompts]))

    def encode(self, sample: Sample) -> ChoicePrompt:
        """A prompt in every framing, and the replies to choose from.

        Raises:
            DataError: naming the row, for what cannot be read or is too long.
        """
        if "problem" in sample.extra:
            raise DataError(str(sample.extra["problem"]))
        question, replies = self.task.phrase(sample.unlabelled()), self.task.choices(sample)
        prompts = tuple(encode(framed, self.model) for framed in in_framings(question, self.framings))
        for reply in replies:  # the template ends every reply alike, whatever the question
            if reply not in self.reply_ids:
                self.reply_ids[reply] = self._reply_ids(question, reply)
        longest = max(len(self.reply_ids[reply]) for reply in replies)
        if max(prompt.length for prompt in prompts) + longest > self.model.context:
            raise DataError(
                f"{question.name}: prompt and reply fill the model's context of "
                f"{self.model.context:,} tokens — use fewer tiles (model.tiles.max) or frames (model.frames)"
            )
        return ChoicePrompt(prompts, replies)

    def _reply_ids(self, question: Conversation, reply: str) -> list[int]:
        labels = encode(replace(question, answer=reply), self.model).labels
        return [int(label) for label in labels[labels != NO_LOSS]]
