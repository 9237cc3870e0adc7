"""Whether an endpoint serves what a run measured: its replies to the held-out samples, scored and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from statistics import median
from typing import Any

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.progress import progress
from mllm_tailor.core.sample import Prediction
from mllm_tailor.models import InputSettings, LoadedModel, count_tokens, load_without_weights
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.data_changes import unchanged
from mllm_tailor.run.data_record import HeldOut, read_held_out
from mllm_tailor.run.replies import read_reply
from mllm_tailor.run.resolve import ResolvedRun, resolve_saved
from mllm_tailor.run.run_dir import RunFolder, in_order, read_predictions
from mllm_tailor.run.scores import score_system
from mllm_tailor.scoring import Gain, compare
from mllm_tailor.scoring.systems import System
from mllm_tailor.serving.openai_client import Endpoint, EndpointReply

CONTEXT = 30  # characters shown around a difference


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in whatever currency."""

    read: float
    written: float

    def of(self, replies: Sequence[EndpointReply]) -> float:
        """A thousand documents, by the tokens of these."""
        tokens = sum(reply.prompt_tokens * self.read + reply.reply_tokens * self.written for reply in replies)
        return tokens / 1e6 / len(replies) * 1000


@dataclass(frozen=True)
class Difference:
    """The first place in which a reply differs."""

    id: str
    token: int  # from 0, in the run's tokens
    run: str  # what the run wrote from there
    endpoint: str
    probability: float | None  # that the endpoint gave its own token, where it states it


@dataclass(frozen=True)
class EndpointResult:
    """An endpoint beside the run."""

    count: int
    same: int  # replies that are equal
    gains: Mapping[str, Gain]  # endpoint minus run
    differences: tuple[Difference, ...]
    causes: tuple[str, ...]
    seconds: tuple[float, float]  # of a reply: the run's and the endpoint's median
    replies: tuple[EndpointReply, ...]
    left_out: tuple[str, ...]  # parameters that the endpoint does not know


def verify_endpoint(folder: RunFolder, endpoint: Endpoint, *, count: int | None, clients: int) -> EndpointResult:
    """Send held-out samples (all, or the first `count`) to an endpoint and compare its replies with the run's.

    Raises:
        RunError: when the run has no predictions yet, or the endpoint does not answer.
    """
    run = resolve_saved(folder.recipe())
    held_out = _first(folder, read_held_out(folder), count)
    ours = _predictions(folder, run, "tuned", held_out.ids)
    if ours is None:
        raise RunError(f"{folder.path}: no predictions of the tuned model — run the same `tailor run` command again")
    conversations = [run.task.phrase(sample.unlabelled()) for sample in held_out.samples]
    replies = _ask_all(endpoint, run, conversations, clients)
    theirs = [_prediction(run, sample.id, reply) for sample, reply in zip(held_out.samples, replies, strict=True)]
    gains = compare(score_system(run, held_out, ours), score_system(run, held_out, theirs), groups=held_out.groups)
    model = load_without_weights(run.model.path, revision=run.model.revision, inputs=InputSettings.of(run.model))
    differences = tuple(
        _difference(before, reply, model)
        for before, reply in zip(ours, replies, strict=True)
        if before.text != reply.text
    )
    base = _predictions(folder, run, "base", held_out.ids)
    expected = [count_tokens(conversation, model) for conversation in conversations]
    evidence = Evidence(
        ours=[prediction.text for prediction in ours],
        theirs=[reply.text for reply in replies],
        base=[prediction.text for prediction in base] if base is not None else None,
        extra_tokens=[reply.prompt_tokens - length for reply, length in zip(replies, expected, strict=True)]
        if all(reply.prompt_tokens for reply in replies)
        else None,
        image_tokens=int(getattr(model.processor, "image_seq_length", 0)),
        first_tokens=[difference.token for difference in differences],
        left_out=tuple(endpoint.left_out),
    )
    return EndpointResult(
        count=len(replies),
        same=len(replies) - len(differences),
        gains=gains,
        differences=differences,
        causes=tuple(likely_causes(evidence)),
        seconds=(median(prediction.seconds for prediction in ours), median(reply.seconds for reply in replies)),
        replies=tuple(replies),
        left_out=tuple(endpoint.left_out),
    )


def _first(folder: RunFolder, held_out: HeldOut, count: int | None) -> HeldOut:
    """The first samples, without those whose files changed since the run read them."""
    kept = {sample.id for sample in unchanged(folder, held_out.samples[:count])}
    rows = zip(held_out.samples, held_out.labels, held_out.questions, strict=True)
    columns = zip(*(row for row in rows if row[0].id in kept), strict=True)
    return HeldOut(*columns)


def _predictions(folder: RunFolder, run: ResolvedRun, model: Any, ids: Sequence[str]) -> list[Prediction] | None:
    path = folder.predictions(System(model, run.mode))
    return in_order(ids, read_predictions(path)) if path.is_file() else None


def _ask_all(
    endpoint: Endpoint, run: ResolvedRun, conversations: Sequence[Conversation], clients: int
) -> list[EndpointReply]:
    """Replies in order; the first alone, since it finds out what the endpoint does not know."""
    schema = run.task.schema() if run.mode is not DecodingMode.UNCONSTRAINED else None

    def ask(conversation: Conversation) -> EndpointReply:
        reply = endpoint.ask(
            conversation, system=run.model.system, schema=schema, limit=run.recipe.predict.max_new_tokens
        )
        display.advance()
        return reply

    with progress("Asking the endpoint", len(conversations)) as display, ThreadPoolExecutor(clients) as pool:
        first = [ask(conversation) for conversation in conversations[:1]]
        return [*first, *pool.map(ask, conversations[1:])]


def _prediction(run: ResolvedRun, sample_id: str, reply: EndpointReply) -> Prediction:
    return read_reply(run.task, sample_id, reply.text, seconds=reply.seconds, cut=reply.cut)


def _difference(ours: Prediction, reply: EndpointReply, model: LoadedModel) -> Difference:
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours.text, reply.text, strict=False)))
    token = len(model.tokenizer(ours.text[:same], add_special_tokens=False).input_ids)
    return Difference(
        id=ours.id,
        token=token,
        run=ours.text[same : same + CONTEXT],
        endpoint=reply.text[same : same + CONTEXT],
        probability=_probability(reply, len(reply.text[:same].encode())),
    )


def _probability(reply: EndpointReply, start: int) -> float | None:
    """Of the endpoint's token that holds this byte."""
    end = 0
    for data, logprob in reply.tokens:
        end += len(data)
        if end > start:
            return float(2.718281828459045**logprob)
    return None


@dataclass(frozen=True)
class Evidence:
    """What tells why replies differ."""

    ours: Sequence[str]
    theirs: Sequence[str]
    base: Sequence[str] | None  # of the untuned model
    extra_tokens: Sequence[int] | None  # of each prompt, against ours; None: the endpoint does not count
    image_tokens: int  # of a tile
    first_tokens: Sequence[int]  # the first differing token of each reply that differs
    left_out: Sequence[str] = ()


def likely_causes(evidence: Evidence) -> list[str]:
    """The most likely reasons, the most telling first; none where all replies are equal."""
    differing = [pair for pair in zip(evidence.ours, evidence.theirs, strict=True) if pair[0] != pair[1]]
    if not differing:
        return []
    causes = []
    if evidence.base is not None:
        like_base = sum(
            base == theirs != ours
            for base, theirs, ours in zip(evidence.base, evidence.theirs, evidence.ours, strict=True)
        )
        if like_base > len(differing) / 2:
            causes.append(f"adapter: {like_base} replies are those of the untuned base, so the adapter is not in use")
    causes += _token_causes(evidence)
    if all("".join(ours.split()) == "".join(theirs.split()) for ours, theirs in differing):
        causes.append(
            "decoding: replies differ in white space alone, as another form of constrained decoding writes it"
        )
    if "response_format" in evidence.left_out:
        causes.append("decoding: the endpoint does not know this JSON schema, so its replies are unconstrained")
    if not causes and evidence.extra_tokens is not None:
        late = sum(token > 0 for token in evidence.first_tokens)
        causes.append(
            f"dtype: prompts have as many tokens as ours, and {late} of {len(differing)} replies differ after their "
            "first token only, as rounding to another number format does; or pixels are prepared in another way"
        )
    return causes or ["another model, or another preparation of its input: the endpoint does not count prompt tokens"]


def _token_causes(evidence: Evidence) -> list[str]:
    """What the lengths of prompts tell."""
    extra = evidence.extra_tokens
    if extra is None or not any(extra):
        return []
    tile = evidence.image_tokens
    if len(set(extra)) == 1:
        more = "more" if extra[0] > 0 else "fewer"
        return [
            f"template or system text: every prompt has {abs(extra[0])} tokens {more} than ours, whatever its images"
        ]
    if tile and all(abs(count) >= tile // 2 for count in extra if count):
        tiles = sum(abs(round(count / tile)) for count in extra) / sum(count != 0 for count in extra)
        return [f"tiles: prompts differ by {tiles:.1f} tiles of {tile} tokens on average — set the endpoint's tiles"]
    return ["tiles or template: prompts differ from ours by numbers of tokens that depend on the sample"]
