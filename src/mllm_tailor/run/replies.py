"""Replies that are written whole, outside of prediction: sampled ones, and those of a teacher."""

from __future__ import annotations

from mllm_tailor.core.sample import Prediction
from mllm_tailor.generation.constrain import Grammar, Vocabulary
from mllm_tailor.generation.per_field import grammars_of
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.tasks import Task


def whole_reply_grammar(run: ResolvedRun, mode: DecodingMode, vocabulary: Vocabulary) -> Grammar | None:
    """What constrains a reply with all fields in one; None where decoding is unconstrained."""
    if mode is not DecodingMode.CONSTRAINED:
        return None
    together = run.recipe.predict.model_copy(update={"fields": "together"})
    return grammars_of(run.task, together, vocabulary).get("")


def read_reply(task: Task, sample_id: str, text: str, *, seconds: float = 0.0, cut: bool = False) -> Prediction:
    """The prediction that a reply's text states."""
    reply = task.parse(text)
    return Prediction(sample_id, text, dict(reply.fields), seconds=seconds, problem=reply.problem, cut=cut)
