"""Beam search: the likeliest of all short replies, the same as greedy with one beam, and held to the schema."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures.replies import means
from fixtures.small_job import make_samples

from mllm_tailor.core.sample import Sample
from mllm_tailor.generation import predict, predict_both
from mllm_tailor.generation.beam_search import Beam, BeamSearch, in_row_order
from mllm_tailor.generation.constrain import Vocabulary
from mllm_tailor.generation.engine import GenerationEngine
from mllm_tailor.generation.predictor import make_engine
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.models import LoadedModel, collate, encode, load_model
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> LoadedModel:
    return load_model(tiny_model_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return [replace(sample.unlabelled(), prompt="") for sample in make_samples(tmp_path_factory.mktemp("pictures"), 5)]


TASK = open_task("extract", {"total": "string", "day": "date"})


def written(model: LoadedModel, sample: Sample, limit: int, beams: int) -> ReplySequence:
    """The free reply to one sample."""
    vocabulary = Vocabulary(model.tokenizer, model.model.config.get_text_config().vocab_size, sorted(model.stop_ids))
    row = ReplySequence(0, encode(TASK.phrase(sample), model), sample.media, DecodingMode.UNCONSTRAINED, None, limit)
    writer = BeamSearch(GenerationEngine(model, vocabulary, 4, feed_forced=False), 4, beams)
    return next(writer.run(iter([[row]])))


def foretold(model: LoadedModel, sample: Sample, tokens: list[int]) -> torch.Tensor:
    """Log probabilities (len(tokens) + 1, words) of every next token of a reply that begins so, by the plain model."""
    encoded = encode(TASK.phrase(sample), model)
    longer = replace(
        encoded,
        ids=torch.cat([encoded.ids, torch.tensor(tokens, dtype=encoded.ids.dtype)]),
        labels=torch.cat([encoded.labels, torch.full((len(tokens),), -100)]),
    )
    batch = collate([longer], model, side="right")
    del batch["labels"]
    with torch.inference_mode():
        logits = model.model(**batch).logits[0].float()
    return logits[encoded.length - 1 :].log_softmax(-1)


@pytest.mark.slow
def test_it_finds_the_likeliest_of_all_replies(model: LoadedModel, samples: list[Sample]) -> None:
    """With as many beams as there are words, two tokens are searched whole; by hand over all pairs."""
    words = model.model.config.get_text_config().vocab_size
    stops = set(model.stop_ids)
    for sample in samples[:2]:
        first = foretold(model, sample, [])[0]
        best: tuple[float, list[int]] = max((float(first[stop]), []) for stop in stops)
        for token in first.topk(40).indices.tolist():  # no pair is likelier than its first token
            if token in stops or float(first[token]) < best[0]:
                continue
            second = foretold(model, sample, [token])[1]
            score, then = second.max(-1)
            found = (float(first[token] + score), [token] if int(then) in stops else [token, int(then)])
            best = max(best, found)
        assert float(first.topk(40).values[-1]) < best[0]  # what was left out could not win
        row = written(model, sample, 2, words)
        assert row.tokens == best[1]
        assert sum(row.logprobs) <= 0


@pytest.mark.slow
@pytest.mark.parametrize("constrained", [True, False])
def test_one_beam_writes_what_greedy_does(model: LoadedModel, samples: list[Sample], constrained: bool) -> None:
    """Also the probabilities behind the confidence."""
    vocabulary = Vocabulary(model.tokenizer, model.model.config.get_text_config().vocab_size, sorted(model.stop_ids))
    settings = Predict(max_new_tokens=40)
    engine = make_engine(model, settings, feed_forced=False)
    greedy = predict(model, TASK, samples, settings, constrained=constrained, engine=engine)
    single = predict(
        model, TASK, samples, Predict(max_new_tokens=40), constrained=constrained,
        engine=BeamSearch(GenerationEngine(model, vocabulary, 3, feed_forced=False), 3, 1),
    )  # fmt: skip
    for one, other in zip(greedy, single, strict=True):
        assert (one.id, one.text, one.fields, one.cut) == (other.id, other.text, other.fields, other.cut)
        assert means(other) == pytest.approx(means(one), abs=1e-4)


def test_more_beams_never_say_less_likely_things(model: LoadedModel, samples: list[Sample]) -> None:
    """The reply's own probability, by the plain model: searched wider, it rises or stays."""
    for sample in samples[:3]:
        likely = []
        for beams in (1, 8):
            row = written(model, sample, 6, beams)
            said = foretold(model, sample, row.tokens)
            score = sum(float(said[place, token]) for place, token in enumerate(row.tokens))
            if not row.cut:
                score += float(said[len(row.tokens), sorted(model.stop_ids)].max())
            likely.append(score)
        assert likely[1] >= likely[0] - 1e-4


@pytest.mark.slow
def test_held_replies_follow_the_schema_and_both_ways_share_a_reading(
    model: LoadedModel, samples: list[Sample]
) -> None:
    settings = Predict(max_new_tokens=60, num_beams=3, batch_size=2)
    both = predict_both(model, TASK, samples, settings)
    for mode in both:
        alone = predict(model, TASK, samples, settings, constrained=mode == "constrained")
        assert [one.text for one in both[mode]] == [one.text for one in alone]
    assert all(one.problem is None and set(one.fields) == {"total", "day"} for one in both[DecodingMode.CONSTRAINED])
    assert all(0 <= value <= 1 for one in both[DecodingMode.CONSTRAINED] for value in means(one).values())
    assert all(one.seconds > 0 for one in both[DecodingMode.CONSTRAINED])


@pytest.mark.slow
def test_batches_do_not_matter(model: LoadedModel, samples: list[Sample]) -> None:
    texts = [
        [one.text for one in predict(model, TASK, samples, Predict(max_new_tokens=40, num_beams=4, batch_size=batch))]
        for batch in (1, 3, 8)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_fork_goes_its_own_way(model: LoadedModel, samples: list[Sample]) -> None:
    row = written(model, samples[0], 4, 2)
    twin = row.fork()
    twin.tokens.append(1)
    twin.logprobs.append(-math.inf)
    assert len(row.tokens) + 1 == len(twin.tokens) and row.logprobs != twin.logprobs


def beam(kv_row: int, score: float) -> Beam:
    return Beam(ReplySequence(0, None, (), DecodingMode.UNCONSTRAINED, None, 1), score, kv_row)  # type: ignore[arg-type]


def test_the_best_continuation_of_a_beam_keeps_its_row() -> None:
    beams = [beam(5, -1), beam(5, -2), beam(6, -3), beam(4, -4)]  # rows 4 to 7; that in row 7 ended
    placed = in_row_order(beams, range(4, 8))
    assert [each.kv_row for each in placed] == [4, 5, 6, 5] and placed[1] is beams[0] and placed[3] is beams[1]
    assert in_row_order(beams[:3], range(4, 8)) == beams[:3]
