"""Predictions of a task for unlabelled samples."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.progress import progress_bar
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.models import OpenModel
from mllm_tailor.models.encode import Encoded
from mllm_tailor.predicting.confidence import confidence_of
from mllm_tailor.predicting.constrain import Grammar, Vocabulary
from mllm_tailor.predicting.decode import Decoder, Row
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import Task

OnDone = Callable[[Prediction], None]


def predict(
    model: OpenModel,
    task: Task,
    samples: Sequence[Sample],
    settings: Predict,
    *,
    constrained: bool | None = None,
    on_done: OnDone | None = None,
    forward: bool = True,
) -> list[Prediction]:
    """What the model says about each sample, in their order.

    Only unlabelled copies are phrased and encoded, so no right answer can reach the model. A sample that cannot be read
    becomes a prediction without text whose `problem` says why. `constrained` overrides the settings; `on_done` sees
    every prediction as soon as it is there, in any order; `forward=False` decodes forced tokens one by one.
    """
    held_to_schema = settings.constrained if constrained is None else constrained
    reader = _Reader(model, task, settings, task.schema() if held_to_schema else None, forward)
    found: dict[int, Prediction] = {}
    was_training = model.model.training
    model.model.eval()
    with progress_bar() as bar:
        shown = bar.add_task("Reading", total=len(samples), note="")
        try:
            for index, prediction in reader.read(samples):
                found[index] = prediction
                bar.advance(shown)
                if on_done is not None:
                    on_done(prediction)
        finally:
            model.model.train(was_training)
    return [found[index] for index in range(len(samples))]


class _Reader:
    """One call of `predict`: from samples to predictions, as they are ready."""

    def __init__(
        self, model: OpenModel, task: Task, settings: Predict, schema: dict[str, Any] | None, forward: bool
    ) -> None:
        self.model, self.task, self.settings = model, task, settings
        width = model.model.config.get_text_config().vocab_size
        self.vocabulary = Vocabulary(model.tokenizer, width, sorted(model.stop_ids))
        self.grammar = Grammar(schema, self.vocabulary) if schema is not None else None
        self.decoder = Decoder(model, self.vocabulary, settings.batch, forward=forward)
        self.failed: deque[tuple[int, Prediction]] = deque()

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Prediction]]:
        """(index, prediction) pairs in the order they are finished."""
        asked = self._ask(samples)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode") as worker:
            for row in self.decoder.run(self._rows(asked, worker)):
                yield row.index, self._prediction(samples[row.index].id, row)
                yield from self._failures()
        yield from self._failures()

    def _ask(self, samples: Sequence[Sample]) -> list[tuple[int, Sample]]:
        """Phrased unlabelled samples, longest first (what does not fit in memory fails at once), media together."""
        asked = []
        for index, sample in enumerate(samples):
            try:
                if "problem" in sample.extra:  # an input that could not even become a sample, see `read_inputs`
                    raise DataError(str(sample.extra["problem"]))
                question = self.task.phrase(sample.unlabelled())
                asked.append((self.model.count_tokens(question), index, question))
            except DataError as error:
                self._fail(index, sample, error)
        longest: dict[Any, int] = {}
        for length, _, question in asked:
            longest[question.media] = max(length, longest.get(question.media, 0))
        first = {question.media: index for _, index, question in reversed(asked)}
        asked.sort(key=lambda item: (-longest[item[2].media], first[item[2].media], -item[0], item[1]))
        return [(index, question) for _, index, question in asked]

    def _rows(self, asked: Sequence[tuple[int, Sample]], worker: ThreadPoolExecutor) -> Iterator[Row]:
        """Encoded rows; pictures are decoded in another thread, a batch ahead of the model."""
        ahead: deque[tuple[int, Sample, Future[tuple[Encoded, float]]]] = deque()
        remaining = iter(asked)
        while True:
            while len(ahead) < self.settings.batch and (item := next(remaining, None)):
                ahead.append((*item, worker.submit(self._encode, item[1])))
            if not ahead:
                return
            index, question, future = ahead.popleft()
            try:
                encoded, seconds = future.result()
                if encoded.length >= self.model.context:
                    raise DataError(
                        f"{question.source or question.id}: the prompt fills the model's context of "
                        f"{self.model.context:,} tokens — use fewer tiles (model.tiles.max) or a shorter question"
                    )
            except DataError as error:
                self._fail(index, question, error)
                continue
            limit = min(self.settings.max_new_tokens, self.model.context - encoded.length)
            guide = self.grammar.guide() if self.grammar else None
            yield Row(index, encoded, question.media, guide, limit, seconds=seconds)

    def _encode(self, question: Sample) -> tuple[Encoded, float]:
        started = time.perf_counter()
        return self.model.encode(question), time.perf_counter() - started

    def _fail(self, index: int, sample: Sample, error: DataError) -> None:
        self.failed.append((index, Prediction(sample.id, "", problem=str(error))))

    def _failures(self) -> Iterator[tuple[int, Prediction]]:
        while self.failed:
            yield self.failed.popleft()

    def _prediction(self, identifier: str, row: Row) -> Prediction:
        pieces = [self.vocabulary.bytes_of(token) for token in row.tokens]
        text = b"".join(pieces).decode("utf-8", "replace")
        reply = self.task.parse(text)
        json_reply = self.task.schema() is not None
        confidence = confidence_of(reply.fields, pieces, row.logprobs, json_reply=json_reply)
        fields = _writable(dict(reply.fields))
        return Prediction(identifier, text, fields, confidence, row.seconds, reply.problem, row.cut)


def _writable(value: Any) -> Any:
    """Mend what JSON can spell but a file cannot hold: half surrogate pairs are replaced, infinite numbers null."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_writable(key): _writable(inner) for key, inner in value.items()}
    return [_writable(inner) for inner in value] if isinstance(value, list) else value
