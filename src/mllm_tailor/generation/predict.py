"""Predictions of a task for unlabelled samples."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.progress import progress
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.generation.beam_search import BeamSearch
from mllm_tailor.generation.confidence import confidence_of
from mllm_tailor.generation.constrain import Vocabulary
from mllm_tailor.generation.engine import GenerationEngine
from mllm_tailor.generation.per_field import FieldAssembler, grammars_of
from mllm_tailor.generation.retrieval import match
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.models import LoadedModel, count_tokens, encode
from mllm_tailor.models.encoded import Encoded
from mllm_tailor.models.vision_cache import VisionFeatureCache
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import Task

Asked = list[tuple[int, Conversation]]  # unlabelled, with the indices of their samples


class Engine(Protocol):
    """What writes replies: our own decoder, or another engine."""

    def run(self, waiting: Iterator[list[ReplySequence]]) -> Iterator[ReplySequence]:
        """Rows as they are finished; groups that share media wait to be taken."""


def predict(
    model: LoadedModel,
    task: Task,
    samples: Sequence[Sample],
    settings: Predict,
    *,
    constrained: bool | None = None,
    on_done: Callable[[Prediction], None] | None = None,
    memory: VisionFeatureCache | None = None,
    forward: bool = True,
    writer: Engine | None = None,
) -> list[Prediction]:
    """What the model says about each sample, in their order.

    Only unlabelled copies are phrased and encoded, so no right answer can reach the model. A sample that cannot be read
    becomes a prediction without text whose `problem` says why. `constrained` overrides the settings; `on_done` sees
    every prediction as soon as it is there, in any order; `memory` spares pictures it has met their way through the
    vision tower; `forward=False` decodes forced tokens one by one; `writer` stands in for our decoder.
    """
    if task.name == "match":
        found = match(model, task, samples, settings)
        for prediction in found if on_done else ():
            on_done(prediction)  # type: ignore[misc]
        return found
    held = settings.constrained if constrained is None else constrained
    report = None if on_done is None else lambda prediction, _: on_done(prediction)
    return _run(Predictor(model, task, settings, (held,), memory, forward, writer), samples, report)[held]


def predict_both(
    model: LoadedModel,
    task: Task,
    samples: Sequence[Sample],
    settings: Predict,
    *,
    on_done: Callable[[Prediction, bool], None] | None = None,
    memory: VisionFeatureCache | None = None,
) -> dict[bool, list[Prediction]]:
    """Replies held to the schema (True) and free ones (False), each equal to what `predict` gives.

    Both follow from one reading of the picture and the prompt, which is most of the work. `on_done` is also told which.
    """
    return _run(Predictor(model, task, settings, (True, False), memory), samples, on_done)


def _run(
    reader: Predictor, samples: Sequence[Sample], on_done: Callable[[Prediction, bool], None] | None
) -> dict[bool, list[Prediction]]:
    """Read all samples, with a progress bar, leaving the model in the mode it was in."""
    found: dict[bool, dict[int, Prediction]] = {held: {} for held in reader.modes}
    model = reader.model.model
    was_training = model.training
    model.eval()
    with progress("Reading", len(samples) * len(reader.modes)) as shown:
        try:
            for index, held, prediction in reader.read(samples):
                found[held][index] = prediction
                shown.advance()
                if on_done is not None:
                    on_done(prediction, held)
        except torch.OutOfMemoryError:
            batch = reader.settings.batch_size
            raise ModelError(
                f"out of memory with {batch} samples side by side, first of all {reader.longest} — "
                f"set predict.batch_size={max(1, batch // 2)}, or use fewer tiles (model.tiles.max)"
            ) from None
        finally:
            model.train(was_training)
    return {held: [ready[index] for index in range(len(samples))] for held, ready in found.items()}


class Predictor:
    """From samples to predictions, as they are ready."""

    def __init__(
        self,
        model: LoadedModel,
        task: Task,
        settings: Predict,
        modes: tuple[bool, ...],
        memory: VisionFeatureCache | None,
        forward: bool = True,
        writer: Engine | None = None,
    ) -> None:
        """`modes`: held to the schema (True), free (False), or both."""
        self.model, self.task, self.settings, self.modes = model, task, settings, modes
        width = model.model.config.get_text_config().vocab_size
        self.vocabulary = Vocabulary(model.tokenizer, width, sorted(model.stop_ids))
        self.json_reply = task.schema() is not None
        self.grammars = grammars_of(task, settings, self.vocabulary) if True in modes else {}
        self.replies = [(held, name) for held in modes for name in (self.grammars if held else ()) or ("",)]
        if writer is not None and settings.fields != "together":
            raise ModelError("predict.fields: another engine writes replies whole — set predict.fields=together")
        self.writer = writer or self._own_writer(memory, forward)
        self.gathered: dict[int, FieldAssembler] = {}  # samples of which some fields are written
        self.longest = ""  # the sample that needs most memory, for messages
        self.failed: deque[tuple[int, Prediction]] = deque()

    def _own_writer(self, memory: VisionFeatureCache | None, forward: bool) -> Engine:
        slots, beams = self.settings.batch_size * len(self.replies), self.settings.num_beams
        decoder = GenerationEngine(self.model, self.vocabulary, slots, memory=memory, forward=forward and beams == 1)
        return decoder if beams == 1 else BeamSearch(decoder, slots, beams)

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, bool, Prediction]]:
        """(index, held to the schema, prediction) in the order they are finished."""
        groups = self._ask(samples)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode") as worker:
            for row in self.writer.run(self._rows(groups, worker)):
                found = self._whole(row, self._prediction(samples[row.index].id, row))
                if found is not None:
                    yield row.index, row.held, found
                yield from self._failures()
        yield from self._failures()

    def _ask(self, samples: Sequence[Sample]) -> list[Asked]:
        """Phrase unlabelled samples, those about the same media together; the longest first: they need most memory."""
        groups: dict[tuple[Media, ...] | int, list[tuple[int, int, Conversation]]] = {}
        for index, sample in enumerate(samples):
            try:
                if "problem" in sample.extra:  # an input that could not even become a sample, see `read_inputs`
                    raise DataError(str(sample.extra["problem"]))
                question = self.task.phrase(sample.unlabelled())
                length = count_tokens(question, self.model)
                groups.setdefault(question.media or index, []).append((length, index, question))
            except DataError as error:
                self._fail(index, sample, error)
        ordered = sorted(groups.values(), key=lambda group: -max(length for length, _, _ in group))
        if ordered:
            length, _, question = max(ordered[0], key=lambda item: item[0])
            self.longest = f"{question.name} with {length:,} tokens"
        most = self.settings.batch_size
        return [
            [(index, question) for _, index, question in group[start : start + most]]
            for group in ordered
            for start in range(0, len(group), most)
        ]

    def _rows(self, groups: Sequence[Asked], worker: ThreadPoolExecutor) -> Iterator[list[ReplySequence]]:
        """Encoded groups; pictures are decoded in another thread, a batch ahead of the model."""
        ahead: deque[list[tuple[int, Conversation, Future[tuple[Encoded, float]]]]] = deque()
        remaining = iter(groups)
        while True:
            while sum(map(len, ahead)) < 2 * self.settings.batch_size and (group := next(remaining, None)):
                ahead.append([(*item, worker.submit(self._encode, item[1])) for item in group])
            if not ahead:
                return
            rows = [row for item in ahead.popleft() for row in self._rows_of(*item)]
            if rows:
                yield rows

    def _rows_of(
        self, index: int, question: Conversation, future: Future[tuple[Encoded, float]]
    ) -> Iterator[ReplySequence]:
        """A row for each reply of a sample; none where the sample cannot be encoded."""
        try:
            encoded, seconds = future.result()
            if encoded.length >= self.model.context:
                raise DataError(
                    f"{question.name}: the prompt fills the model's context of "
                    f"{self.model.context:,} tokens — use fewer tiles (model.tiles.max) or a shorter question"
                )
        except DataError as error:
            self._fail(index, question, error)
            return
        limit = min(self.settings.max_new_tokens, self.model.context - encoded.length)
        for held, name in self.replies:
            guide = self.grammars[name].guide() if held and self.grammars else None
            share = seconds / len(self.replies)
            yield ReplySequence(index, encoded, question.media, held, guide, limit, seconds=share, name=name)

    def _encode(self, question: Conversation) -> tuple[Encoded, float]:
        started = time.perf_counter()
        return encode(question, self.model), time.perf_counter() - started

    def _fail(self, index: int, sample: Sample | Conversation, error: DataError) -> None:
        self.failed.append((index, Prediction(sample.id, "", problem=str(error))))

    def _failures(self) -> Iterator[tuple[int, bool, Prediction]]:
        while self.failed:
            index, prediction = self.failed.popleft()
            yield from ((index, held, prediction) for held in self.modes)

    def _whole(self, row: ReplySequence, found: Prediction) -> Prediction | None:
        """The prediction of a sample, when this row was the last of its reply."""
        if not row.name:
            return found
        whole = self.gathered.setdefault(row.index, FieldAssembler(self.task.field_names)).add(row.name, found)
        if whole is not None:
            del self.gathered[row.index]
        return whole

    def _prediction(self, identifier: str, row: ReplySequence) -> Prediction:
        pieces = [self.vocabulary.bytes_of(token) for token in row.tokens]
        text = b"".join(pieces).decode("utf-8", "replace")
        reply = self.task.parse(text)
        confidence = confidence_of(reply.fields, pieces, row.logprobs, json_reply=self.json_reply)
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
