"""One turn of a route at the engine: its waiting requests are decoded together, and later ones join them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.generation.engine import GenerationEngine
from mllm_tailor.generation.loglikelihood import ROWS, LikelihoodScorer
from mllm_tailor.generation.predictor import Predictor, Question
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.models import Encoded
from mllm_tailor.serving.jobs import Job, JobQueue, Outcome, Route, Token
from mllm_tailor.serving.text_pieces import TextPieces

TURN = 2.0  # seconds that a request of another route waits before no further one joins this turn

Begun = MutableMapping[int, Job]  # by the index under which the engine knows them


def generation_turn(predictor: Predictor, queue: JobQueue, route: Route, begun: Begun) -> None:
    """Generate replies until no job of the route is left, or another route has waited long enough."""
    turn = GenerationTurn(predictor, queue, route, begun)
    engine = predictor.engine
    if isinstance(engine, GenerationEngine):
        engine.on_step = turn.on_step
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode") as encoder:
        for sequence in engine.run(turn.arriving(encoder)):
            turn.finish(sequence)


class GenerationTurn:
    """The requests that are being decoded together."""

    def __init__(self, predictor: Predictor, queue: JobQueue, route: Route, begun: Begun) -> None:
        self.predictor, self.queue, self.route, self.begun = predictor, queue, route, begun
        self.joins = isinstance(predictor.engine, GenerationEngine)  # beams are decoded batch by batch
        self.number = 0
        self.running: dict[int, list[ReplySequence]] = {}  # the sequences of each reply, in all framings
        self.pieces: dict[int, TextPieces] = {}
        self.ahead: deque[tuple[Question, Job, Future[tuple[Encoded, float]]]] = deque()

    def arriving(self, encoder: ThreadPoolExecutor) -> Iterator[list[ReplySequence]]:
        """Sequences to decode, an empty group while none is waiting and others are still decoded."""
        while True:
            self._look_ahead(encoder)
            if self.ahead:
                sequences = self._begin(*self.ahead.popleft())
                if sequences:
                    yield sequences
            elif self.running and self.joins:
                yield []
            else:
                return

    def _look_ahead(self, encoder: ThreadPoolExecutor) -> None:
        """Phrase and encode what waits, a batch ahead of the model."""
        most = 2 * self.predictor.settings.batch_size
        while len(self.ahead) < most and (job := self.queue.take(self.route, TURN)) is not None:
            if job.abandoned:
                job.result.cancel()
                continue
            self.number += 1
            self.begun[self.number] = job
            try:
                questions = self.predictor.questions(self.number, self.predictor.task.phrase(job.sample.unlabelled()))
            except DataError as error:
                self._answer(self.number, job, Prediction(job.sample.id, "", problem=str(error)))
                continue
            self.running[self.number] = []
            for question in questions:
                encoded = encoder.submit(self.predictor.encode, question.conversation)
                self.ahead.append((question, job, encoded))

    def _begin(
        self, question: Question, job: Job, encoding: Future[tuple[Encoded, float]]
    ) -> list[ReplySequence] | None:
        if question.index not in self.begun:  # given up while another framing was read
            return None
        try:
            encoded, seconds = encoding.result()
        except DataError as error:
            for result in self.predictor.fail(question, error):
                self._answer(question.index, job, result.prediction)
            return None
        sequences = self.predictor.begin_replies(question, encoded, seconds, job.limit, locate=job.locate)
        self.running[question.index] += sequences
        if job.on_text is not None and len(self.predictor.replies) == 1 and self.joins and self.predictor.votes is None:
            self.pieces[question.index] = TextPieces(self.predictor.vocabulary)
        return sequences

    def on_step(self, rows: Sequence[ReplySequence]) -> None:
        """After a step: pass on what was written, and end replies that nobody waits for."""
        for row in rows:
            job = self.begun.get(row.index)
            if job is None or job.abandoned:
                row.abandon()
            elif row.index in self.pieces and job.on_text is not None:
                text = self.pieces[row.index].add(row.tokens)
                if text and not row.done:  # the rest comes with the result
                    job.on_text(text)

    def finish(self, sequence: ReplySequence) -> None:
        """A sequence is finished; with the last one of a reply its job is answered."""
        index = sequence.index
        job = self.begun.get(index)
        if job is None:
            return
        if job.abandoned:
            job.result.cancel()
            self._forget(index)
            return
        prediction = self.predictor.finish(job.sample.id, sequence)
        if prediction is not None:
            self._answer(index, job, prediction)

    def _answer(self, index: int, job: Job, prediction: Prediction) -> None:
        """Answer a job; all that was read and written for it counts, in every framing."""
        sequences = self.running.get(index, [])
        tokens = tuple(
            Token(self.predictor.vocabulary.bytes_of(token), logprob)
            for each in sequences
            for token, logprob in zip(each.tokens, each.logprobs, strict=True)
        )
        read = sum({each.framing: each.encoded.length for each in sequences}.values())
        self._forget(index)
        job.result.set_result(Outcome(prediction, read, tokens))

    def _forget(self, index: int) -> None:
        self.predictor.forget(index)
        for known in (self.begun, self.running, self.pieces):
            known.pop(index, None)


def compare_turn(scorer: LikelihoodScorer, queue: JobQueue, route: Route, begun: Begun, batch_size: int) -> None:
    """Answer the waiting jobs of a route whose replies are compared, as many together as fit side by side."""
    rows = 0
    while len(begun) < batch_size and rows < ROWS and (job := queue.take(route, TURN)) is not None:
        if job.abandoned:
            job.result.cancel()
            continue
        begun[len(begun)] = job
        rows += scorer.framings * (len(job.sample.options) or len(getattr(route.task, "classes", ())))
    jobs = list(begun.values())
    prompts = []
    for job in jobs:
        try:
            prompts.append((job, scorer.encode(job.sample)))
        except DataError as error:
            job.result.set_result(Outcome(Prediction(job.sample.id, "", problem=str(error))))
    choices = scorer.choose([prompt for _, prompt in prompts]) if prompts else []
    for (job, prompt), choice in zip(prompts, choices, strict=True):
        prediction, token = scorer.prediction(job.sample.id, choice), Token(choice.reply.encode(), choice.logprob)
        job.result.set_result(Outcome(prediction, prompt.length, (token,), choice.shares))
