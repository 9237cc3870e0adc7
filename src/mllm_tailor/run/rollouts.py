"""Sampled replies and their scores, for the objectives that learn from them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.core.sample import Sample
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.generation.constrain import Vocabulary
from mllm_tailor.generation.predictor import vocabulary_of
from mllm_tailor.generation.sampling import ReplyRequest, Sampling, sample_replies
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import DecodingMode, ReplySampling
from mllm_tailor.run.replies import read_reply, whole_reply_grammar
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.scores import score_labelled
from mllm_tailor.scoring.metrics import METRICS
from mllm_tailor.training import Rollout, SampleReplies

STEPS = 1024  # a reward is a multiple of 1/1024: the mean of equal rewards is then exact, and their advantage zero
RewardFunction = Callable[..., float]
ScoreReply = Callable[[str], tuple[float, dict[str, float]]]  # a reply's text -> its reward, what that does not see


def make_sampler(
    run: ResolvedRun, sampling: ReplySampling, model: LoadedModel, cache: VisionFeatureCache | None
) -> SampleReplies:
    """What samples and scores replies to each of several labelled conversations.

    Raises:
        RecipeError: for a reward that does not exist.
    """
    scorer = RewardScorer(run, sampling.metric)
    vocabulary = vocabulary_of(model)
    grammar = whole_reply_grammar(run, _mode(run, sampling), vocabulary)
    limit, slots = longest_reply(run, sampling), run.recipe.predict.batch_size

    def sample(conversations: Sequence[Conversation], seed: int) -> list[list[Rollout]]:
        drawn = Sampling(sampling.temperature, sampling.top_p, seed)
        request = ReplyRequest(sampling.count, drawn, limit, slots, grammar)
        groups = sample_replies(model, conversations, request, cache)
        rollouts = []
        for conversation, group in zip(conversations, groups, strict=True):
            score = scorer.for_sample(conversation.sample)
            rollouts.append([_rollout(reply, score, vocabulary) for reply in group])
        return rollouts

    return sample


def _mode(run: ResolvedRun, sampling: ReplySampling) -> DecodingMode:
    if sampling.constrained is None:
        return run.mode
    return DecodingMode.CONSTRAINED if sampling.constrained else DecodingMode.UNCONSTRAINED


def longest_reply(run: ResolvedRun, sampling: ReplySampling) -> int:
    """Tokens of a sampled reply, at most."""
    return sampling.max_new_tokens or run.recipe.predict.max_new_tokens


def _rollout(reply: ReplySequence, score: ScoreReply, vocabulary: Vocabulary) -> Rollout:
    reward, watched = score(vocabulary.text_of(reply.tokens))
    tokens, chosen = list(reply.tokens), list(reply.choices)
    if reply.stop is not None:
        chosen.append(len(tokens))
        tokens.append(reply.stop)
    return Rollout(tokens, chosen, reward, reply.cut, watched)


class RewardScorer:
    """The reward of a reply, and what that reward does not see."""

    def __init__(self, run: ResolvedRun, metric: str | Mapping[str, float] | None) -> None:
        """Raises RecipeError for an unknown metric, or a function that cannot be imported."""
        self.run = run
        wanted = metric or run.metrics[0]
        weights = {wanted: 1.0} if isinstance(wanted, str) else dict(wanted)
        self.functions = {name: load_function(name) for name in weights if ":" in name}
        for name in weights:
            if name not in self.functions:
                METRICS.load(name)
        self.weights = weights
        self.metrics = tuple(dict.fromkeys((*(name for name in weights if name not in self.functions), *run.metrics)))

    def for_sample(self, sample: Sample) -> ScoreReply:
        """What scores the replies to a sample, whose labels are worked out once."""
        labels = self.run.task.labels(sample)

        def score(text: str) -> tuple[float, dict[str, float]]:
            """The weighted sum, each metric from 0 to 1 with 1 best; and the metrics and facts that have no weight.

            Raises:
                RunError: naming the sample, where a function of the user's raises or returns no number.
            """
            reply = read_reply(self.run.task, sample.id, text)
            scores = score_labelled(self.run, [labels], [reply], self.metrics)
            values = {
                name: 1 - value / 100 if METRICS.load(name).better == "lower" else value / 100
                for name, value in scores.items()
            }
            for name, function in self.functions.items():
                values[name] = _call(name, function, sample, text, reply.fields, labels)
            reward = sum(weight * values[name] for name, weight in self.weights.items())
            watched = {name: value for name, value in values.items() if name not in self.weights}
            return round(reward * STEPS) / STEPS, watched | _facts(reply.fields, labels, failed=bool(reply.problem))

        return score


def _facts(fields: Mapping[str, Any], labels: Mapping[str, Any], *, failed: bool) -> dict[str, float]:
    """Shares that a reward may not see: replies that cannot be read, values left out, values that nobody labelled."""
    facts = {"unreadable": float(failed)}
    labelled = [name for name, value in labels.items() if value not in (None, "", [])]
    empty = [name for name, value in labels.items() if value in (None, "", [])]
    if labelled:
        facts["absent"] = sum(fields.get(name) in (None, "", []) for name in labelled) / len(labelled)
    if empty:
        facts["invented"] = sum(fields.get(name) not in (None, "", []) for name in empty) / len(empty)
    return facts


def load_function(name: str) -> RewardFunction:
    """`module:function` of an installed package, called as `function(text, fields, labels, sample)`.

    Raises:
        RecipeError: where there is no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"`train.reward.metric`: {name} cannot be imported ({error}) — install its package in this environment"
        ) from None
    if not callable(function):
        raise RecipeError(f"`train.reward.metric`: {name} is not a function")
    return function  # type: ignore[no-any-return]


def _call(
    name: str,
    function: RewardFunction,
    sample: Sample,
    text: str,
    fields: Mapping[str, Any],
    labels: Mapping[str, Any],
) -> float:
    source = sample.source or sample.id
    try:
        value = float(function(text=text, fields=dict(fields), labels=dict(labels), sample=sample))
    except Exception as error:
        raise RunError(f"{source}: the reward {name} raised {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise RunError(f"{source}: the reward {name} returned {value}, which is not a finite number")
    return value
