"""From samples to predictions: encoding ahead of the model, one sequence per reply, and parsing."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.regions import IMAGE, Box, Move, PageView, enclosing, move_text, move_value
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.generation.beam_search import BeamSearch
from mllm_tailor.generation.confidence import other_values, raw_scores
from mllm_tailor.generation.constrain import Vocabulary
from mllm_tailor.generation.engine import GenerationEngine
from mllm_tailor.generation.locate import Locator
from mllm_tailor.generation.per_field import FieldAssembler, grammars_of
from mllm_tailor.generation.prefill import Prefill
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.generation.voting import FramingVotes, check_framings, in_framings
from mllm_tailor.models import LoadedModel, count_tokens, encode
from mllm_tailor.models.encoded import Encoded
from mllm_tailor.models.inputs.internvl import shared_tiles
from mllm_tailor.models.vision_cache import VisionFeatureCache
from mllm_tailor.recipe import DecodingMode, Predict
from mllm_tailor.tasks import FieldTask, RegionTask, Task

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Decodes replies: `GenerationEngine`, `BeamSearch`, or another library's engine."""

    def run(self, waiting: Iterator[list[ReplySequence]]) -> Iterator[ReplySequence]:
        """Sequences as they finish; the sequences of a group share media."""


@dataclass(frozen=True)
class Question:
    """An unlabelled conversation in one framing of its images, and the index of its sample."""

    index: int
    conversation: Conversation
    framing: int = 0


@dataclass(frozen=True)
class Result:
    """A prediction, the index of its sample, and how it was decoded."""

    index: int
    mode: DecodingMode
    prediction: Prediction


@dataclass(frozen=True)
class _Encoding:
    question: Question
    future: Future[tuple[Encoded, float]]  # and the seconds it took


class Predictor:
    """Predicts samples in one or both of the modes in which a reply is generated."""

    def __init__(
        self,
        model: LoadedModel,
        task: Task,
        settings: Predict,
        modes: Sequence[DecodingMode],
        *,
        cache: VisionFeatureCache | None = None,
        engine: Engine | None = None,
    ) -> None:
        check_framings(task, settings)
        self.model, self.task, self.settings, self.modes = model, task, settings, tuple(modes)
        self.vocabulary = vocabulary_of(model)
        self.json_reply = task.schema() is not None
        constrained = DecodingMode.CONSTRAINED in self.modes
        self.grammars = grammars_of(task, settings, self.vocabulary) if constrained else {}
        self.replies = [
            (mode, name)
            for mode in self.modes
            for name in (self.grammars if mode is DecodingMode.CONSTRAINED else ()) or ("",)
        ]
        if engine is not None and settings.fields != "together":
            raise ModelError("predict.fields: another engine generates whole replies — set predict.fields=together")
        self.engine: Engine
        prefill = None
        if engine is None:
            self.engine = own = make_engine(model, settings, replies=len(self.replies), cache=cache)
            prefill = prefill_of(own)
        else:
            self.engine = engine
        self.locator = Locator(getattr(task, "kinds", {}), prefill)
        self.locatable = isinstance(task, FieldTask) and not isinstance(task, RegionTask)
        self.assemblers: dict[tuple[int, int], FieldAssembler] = {}  # of framings of which some fields are finished
        self.votes = FramingVotes(task) if settings.framings > 1 else None
        self.longest = ""  # the sample that needs most memory, for messages
        self.failed: deque[Result] = deque()

    def predict(self, samples: Sequence[Sample]) -> Iterator[Result]:
        """Predictions in the order in which they finish."""
        groups = self._group(samples)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode") as worker:
            for sequence in self.engine.run(self._sequences(groups, worker)):
                prediction = self.finish(samples[sequence.index].id, sequence)
                if prediction is not None:
                    yield Result(sequence.index, sequence.mode, prediction)
                yield from self._failures()
        yield from self._failures()

    def _group(self, samples: Sequence[Sample]) -> list[list[Question]]:
        """Phrase unlabelled samples and group those about the same media; the longest first: they need most memory."""
        groups: dict[tuple[Media, ...] | int, list[tuple[int, Question]]] = {}
        read_once = 0
        for index, sample in enumerate(samples):
            try:
                if "problem" in sample.extra:  # an input that could not become a sample, see `read_inputs`
                    raise DataError(str(sample.extra["problem"]))
                questions = self.questions(index, self.task.phrase(sample.unlabelled()))
                lengths = [count_tokens(question.conversation, self.model) for question in questions]
            except DataError as error:
                self._fail(index, sample.id, error)
                continue
            read_once += len(questions) == 1
            for length, question in zip(lengths, questions, strict=True):
                groups.setdefault(question.conversation.media or index, []).append((length, question))
        if self.settings.framings > 1 and read_once:
            logger.warning("predict.framings: %d samples show no image and are read once", read_once)
        ordered = sorted(groups.values(), key=lambda group: -max(length for length, _ in group))
        if ordered:
            length, question = max(ordered[0], key=lambda item: item[0])
            self.longest = f"{question.conversation.name} with {length:,} tokens"
        most = self.settings.batch_size
        return [
            [question for _, question in group[start : start + most]]
            for group in ordered
            for start in range(0, len(group), most)
        ]

    def questions(self, index: int, conversation: Conversation) -> list[Question]:
        """A conversation in each framing in which it is read; their predictions are joined by `finish`."""
        if self.votes is None:
            return [Question(index, conversation)]
        framed = in_framings(conversation, self.settings.framings)
        self.votes.expect(index, len(framed))
        return [Question(index, each, framing) for framing, each in enumerate(framed)]

    def _sequences(self, groups: Sequence[list[Question]], worker: ThreadPoolExecutor) -> Iterator[list[ReplySequence]]:
        """Encoded groups; media are decoded in another thread, a batch ahead of the model."""
        ahead: deque[list[_Encoding]] = deque()
        remaining = iter(groups)
        while True:
            while sum(map(len, ahead)) < 2 * self.settings.batch_size and (group := next(remaining, None)):
                ahead.append([_Encoding(item, worker.submit(self.encode, item.conversation)) for item in group])
            if not ahead:
                return
            sequences = [sequence for encoding in ahead.popleft() for sequence in self._sequences_of(encoding)]
            if sequences:
                yield sequences

    def _sequences_of(self, encoding: _Encoding) -> list[ReplySequence]:
        """A sequence per reply of a sample; none where the sample cannot be encoded."""
        try:
            encoded, seconds = encoding.future.result()
        except DataError as error:
            self.failed.extend(self.fail(encoding.question, error))
            return []
        return self.begin_replies(encoding.question, encoded, seconds)

    def encode(self, conversation: Conversation) -> tuple[Encoded, float]:
        """A prompt, and the seconds that encoding it took.

        Raises:
            DataError: naming the sample, for media that cannot be read or a prompt that leaves no room for a reply.
        """
        started = time.perf_counter()
        encoded = encode(conversation, self.model)
        if encoded.length >= self.model.context:
            raise DataError(
                f"{conversation.name}: the prompt fills the model's context of "
                f"{self.model.context:,} tokens — use fewer tiles (model.tiles.max) or a shorter question"
            )
        return encoded, time.perf_counter() - started

    def begin_replies(
        self,
        question: Question,
        encoded: Encoded,
        seconds: float,
        limit: int | None = None,
        *,
        locate: bool | None = None,
    ) -> list[ReplySequence]:
        """A sequence for each reply to a question.

        `limit` may lower the recipe's number of tokens of each; `locate` overrides `predict.boxes`.
        """
        room = min(self.settings.max_new_tokens, self.model.context - encoded.length)
        return [
            ReplySequence(
                index=question.index,
                encoded=encoded,
                media=question.conversation.media,
                mode=mode,
                guide=self.grammars[name].guide() if mode is DecodingMode.CONSTRAINED and self.grammars else None,
                limit=room if limit is None else min(room, limit),
                seconds=seconds / len(self.replies),
                name=name,
                locate=question.framing == 0 and (self.settings.boxes if locate is None else locate),
                framing=question.framing,
            )
            for mode, name in self.replies
        ]

    def finish(self, sample_id: str, sequence: ReplySequence) -> Prediction | None:
        """The prediction of a sample, once all sequences of its reply are finished."""
        prediction = self._assemble(sequence, self._prediction(sample_id, sequence))
        if prediction is None or self.votes is None:
            return prediction
        return self.votes.add(sequence.index, sequence.mode, sequence.framing, prediction)

    def fail(self, question: Question, error: DataError) -> list[Result]:
        """A framing of a sample cannot be read; the results of the sample if it was the last one waited for."""
        prediction = Prediction(question.conversation.id, "", problem=str(error))
        index = question.index
        if self.votes is None:
            return [Result(index, mode, prediction) for mode in self.modes]
        joined = ((mode, self.votes.add(index, mode, question.framing, prediction)) for mode in self.modes)
        return [Result(index, mode, result) for mode, result in joined if result is not None]

    def forget(self, index: int) -> None:
        """Drop what is kept of a sample that nobody waits for any more."""
        for key in [key for key in self.assemblers if key[0] == index]:
            del self.assemblers[key]
        if self.votes is not None:
            self.votes.forget(index)

    def _fail(self, index: int, sample_id: str, error: DataError) -> None:
        prediction = Prediction(sample_id, "", problem=str(error))
        self.failed.extend(Result(index, mode, prediction) for mode in self.modes)

    def _failures(self) -> Iterator[Result]:
        while self.failed:
            yield self.failed.popleft()

    def _assemble(self, sequence: ReplySequence, prediction: Prediction) -> Prediction | None:
        """The prediction of a framing, once all sequences of its reply are finished."""
        if not sequence.name:
            return prediction
        key = sequence.index, sequence.framing
        assembler = self.assemblers.setdefault(key, FieldAssembler(self.task.field_names))
        whole = assembler.add(sequence.name, prediction)
        if whole is not None:
            del self.assemblers[key]
        return whole

    def _on_whole_images(self, text: str, fields: dict[str, Any], media: tuple[Media, ...]) -> dict[str, Any]:
        """The fields with boxes on images as they are stored, where the model reads only a part of them.

        Where several images are shown, `image` is the one that a box or outline is of, from 0: the last, if the reply
        names none.
        """
        images = [item for item in media if item.kind == "image"]
        regions = isinstance(self.task, RegionTask)
        if not images or not (regions or "<box>" in text):
            return fields
        tiles = shared_tiles(self.model.tiles, images)
        moves = [_to_page(view) if (view := self.model.view(image, tiles)) else None for image in images]
        if isinstance(self.task, RegionTask):
            index = min(fields.pop(IMAGE, len(images)), len(images) - 1)
            if (move := moves[index]) is not None:
                fields |= {name: move_value(fields[name], move) for name in self.task.region_fields if name in fields}
            return fields | {IMAGE: index} if fields and len(images) > 1 else fields
        if any(moves):
            try:
                return dict(self.task.parse(move_text(text, moves, len(images), "")).fields)
            except DataError:  # a box that is none, or is of no image: as the model wrote it
                return fields
        return fields

    def _prediction(self, sample_id: str, sequence: ReplySequence) -> Prediction:
        pieces = [self.vocabulary.bytes_of(token) for token in sequence.tokens]
        text = b"".join(pieces).decode("utf-8", "replace")
        reply = self.task.parse(text)
        candidates = [
            (b"".join(map(self.vocabulary.bytes_of, tokens)), logprob) for tokens, logprob in sequence.candidates
        ]
        raw = raw_scores(reply.fields, pieces, sequence.logprobs, json_reply=self.json_reply, candidates=candidates)
        started = time.perf_counter()
        where = self.locator.locate(sequence, pieces) if sequence.locate and self.locatable else None
        sequence.seconds += time.perf_counter() - started
        others = [text for text, _ in sorted(candidates, key=lambda item: -item[1]) if text != b"".join(pieces)]
        parsed = (self.task.parse(other.decode("utf-8", "replace")).fields for other in others)
        other = {} if isinstance(self.task, RegionTask) else _writable(other_values(reply.fields, parsed))
        fields = _writable(self._on_whole_images(text, dict(reply.fields), sequence.media))
        return Prediction(
            sample_id,
            text,
            fields,
            seconds=sequence.seconds,
            problem=reply.problem,
            cut=sequence.cut,
            raw=raw,
            where=where,
            candidates=other,
        )


def vocabulary_of(model: LoadedModel) -> Vocabulary:
    """The vocabulary of a model's logits."""
    width = model.model.config.get_text_config().vocab_size
    return Vocabulary(model.tokenizer, width, sorted(model.stop_ids))


def make_engine(
    model: LoadedModel,
    settings: Predict,
    *,
    replies: int = 1,
    cache: VisionFeatureCache | None = None,
    feed_forced: bool = True,
) -> GenerationEngine | BeamSearch:
    """The built-in engine for a number of replies per sample; `feed_forced=False` decodes forced tokens one by one."""
    slots, beams = settings.batch_size * replies, settings.num_beams
    engine = GenerationEngine(model, vocabulary_of(model), slots, cache=cache, feed_forced=feed_forced and beams == 1)
    return engine if beams == 1 else BeamSearch(engine, slots, beams)


def prefill_of(engine: GenerationEngine | BeamSearch) -> Prefill:
    """What the built-in engine reads prompts with."""
    return engine.engine.prefill if isinstance(engine, BeamSearch) else engine.prefill


def _to_page(view: PageView) -> Move:
    """From a box of what the model was shown to the page; where that shows nothing of the page, the box stays."""

    def move(box: Box) -> Box:
        boxes = view.to_page(box)
        return enclosing(boxes) if boxes else box

    return move


def _writable(value: Any) -> Any:
    """Replace what JSON text can express but a file cannot hold: lone surrogates, and infinite numbers by null."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_writable(key): _writable(inner) for key, inner in value.items()}
    return [_writable(inner) for inner in value] if isinstance(value, list) else value
