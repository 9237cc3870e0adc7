"""A finished run as the teacher of `tailor label`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation.predictor import vocabulary_of
from mllm_tailor.generation.sampling import ReplyRequest, Sampling, sample_replies
from mllm_tailor.models import LoadedModel
from mllm_tailor.run.label import Readings
from mllm_tailor.run.new_files import Predictor
from mllm_tailor.run.predict import generate
from mllm_tailor.run.replies import read_reply, whole_reply_grammar


class RunTeacher:
    """Reads by the run's own decoding, with calibrated confidences, and once more by sampling."""

    def __init__(self, predictor: Predictor, temperature: float, seed: int) -> None:
        self.predictor, self.temperature, self.seed = predictor, temperature, seed
        self.chunk = predictor.run.recipe.predict.batch_size

    def describe(self) -> dict[str, Any]:
        """The predictor's key, temperature and seed."""
        return {"teacher": self.predictor.key(), "temperature": self.temperature, "seed": self.seed}

    @cached_property
    def model(self) -> LoadedModel:
        """The tuned model, opened when the first file is read."""
        return self.predictor.open()

    def read(self, samples: Sequence[Sample]) -> list[Readings]:
        """Both readings of each sample; one that cannot be opened fails alone."""
        run = self.predictor.run
        first = [
            self.predictor.calibration.apply(prediction)
            for prediction in generate(self.predictor.mode, self.model, run, samples)
        ]
        unread = {prediction.id for prediction in first if prediction.problem and not prediction.text}
        rest = [sample for sample in samples if sample.id not in unread]
        second = dict(zip((sample.id for sample in rest), self._sampled(rest), strict=True))
        return [
            Readings(failure=prediction.problem or "")
            if prediction.id in unread
            else Readings(prediction, second[prediction.id], seconds=prediction.seconds + second[prediction.id].seconds)
            for prediction in first
        ]

    def _sampled(self, samples: Sequence[Sample]) -> list[Prediction]:
        if not samples:
            return []
        run, vocabulary = self.predictor.run, vocabulary_of(self.model)
        request = ReplyRequest(
            count=1,
            sampling=Sampling(self.temperature, 1.0, self.seed),
            limit=run.recipe.predict.max_new_tokens,
            slots=run.recipe.predict.batch_size,
            grammar=whole_reply_grammar(run, self.predictor.mode, vocabulary),
        )
        try:
            conversations = [run.task.phrase(sample.unlabelled()) for sample in samples]
        except DataError as error:
            raise RunError(str(error)) from None
        replies = [group[0] for group in sample_replies(self.model, conversations, request)]
        return [
            read_reply(run.task, sample.id, vocabulary.text_of(reply.tokens), seconds=reply.seconds, cut=reply.cut)
            for sample, reply in zip(samples, replies, strict=True)
        ]
