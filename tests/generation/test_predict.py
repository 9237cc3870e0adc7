"""Prediction: batched equals one by one, forced tokens fed together equal decoded ones, and no answer can get in."""

from __future__ import annotations

import json
import math
import sys
from contextlib import contextmanager
from dataclasses import replace

import llguidance.numpy
import numpy as np
import pytest
import torch
from fixtures.replies import means
from fixtures.small_job import save_lively
from PIL import Image
from tokenizers import Tokenizer, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.generation import VisionFeatureCache, predict, predict_both
from mllm_tailor.generation import engine as decode
from mllm_tailor.generation.constrain import Grammar, Vocabulary, allowed_tokens
from mllm_tailor.generation.predictor import make_engine
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.models import LoadedModel, encode, prompt_inputs
from mllm_tailor.models.bundled.build import build_tokenizer
from mllm_tailor.models.vision_cache import VisionEncoder, weights_key
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task

RECEIPT = {
    "company": {"type": "string", "max_length": 8},
    "kind": {"type": "choice", "choices": ["cash", "card", "cheque"]},
    "paid": "boolean",
    "lines": {"type": "list", "items": {"name": {"type": "string", "max_length": 4}}, "max_items": 2},
    "total": {"type": "amount", "max_length": 6},
}


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with merges learnt from JSON, so that forced text falls into tokens of several characters."""
    tokenizer = build_tokenizer()
    core: Tokenizer = tokenizer.backend_tokenizer
    special = [str(token) for token in core.get_added_tokens_decoder().values()]
    rows = [json.dumps({name: str(number) for name in RECEIPT}) for number in range(50)]
    fresh = Tokenizer(BPE())
    fresh.pre_tokenizer, fresh.decoder = core.pre_tokenizer, core.decoder
    alphabet = [token for token in tokenizer.get_vocab() if token not in set(tokenizer.all_special_tokens)]
    fresh.train_from_iterator(
        rows,
        trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fresh,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        extra_special_tokens=tokenizer.init_kwargs["extra_special_tokens"],
    )


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def model(request, tmp_path_factory) -> LoadedModel:
    tokenizer = build_tokenizer() if request.param == "bytes" else bpe_tokenizer()
    return save_lively(tmp_path_factory.mktemp(request.param), tokenizer, 3, head_width=16)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """Five labelled pictures of different shapes, so that prompts differ in length."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    made = []
    for number in range(5):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (20 + 15 * number, 40, 3), dtype=np.uint8)).save(path)
        made.append(Sample(str(number), (Media("image", path),), fields={"company": "POISON", "total": "66.60"}))
    return made


TASK = open_task("extract", RECEIPT)
ENDLESS = open_task("extract", {"count": "integer", **RECEIPT, "share": "number"})  # digits may go on for ever
ASK = open_task("answer", {})
SETTINGS = Predict(batch_size=4, max_new_tokens=120)


def settings(**changes) -> Predict:
    return SETTINGS.model_copy(update=changes)


def vocabulary_of(model: LoadedModel) -> Vocabulary:
    return Vocabulary(model.tokenizer, model.model.config.text_config.vocab_size, sorted(model.stop_ids))


@contextmanager
def tiles_seen(model: LoadedModel):
    """Counts, for each call of the vision tower, the tiles it read."""
    counts: list[int] = []
    hook = model.model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    yield counts
    hook.remove()


def texts(predictions):
    return [prediction.text for prediction in predictions]


def reference(model: LoadedModel, sample: Sample, limit: int, *, feed_forced: bool = True) -> str:
    """Constrained greedy decoding without cache or batch: the whole sequence anew for every token.

    With `feed_forced`, what the schema forces is appended as the tokenizer splits it, otherwise chosen by the model.
    """
    vocabulary = vocabulary_of(model)
    guide = Grammar(TASK.schema(), vocabulary).guide()
    inputs = prompt_inputs([TASK.phrase(sample.unlabelled())], model)
    tokens: list[int] = []
    masks = llguidance.numpy.allocate_token_bitmask(1, vocabulary.width)
    while not guide.ended and len(tokens) < limit:
        if feed_forced and (forced := guide.forced()):
            tokens += forced
            continue
        ids = torch.cat([inputs["input_ids"], torch.tensor([tokens], dtype=torch.long)], dim=1)
        with torch.inference_mode():
            logits = model.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
        guide.fill(masks, 0)
        allowed = torch.from_numpy(allowed_tokens(masks, vocabulary.width)[0])
        tokens.append(int(logits.where(allowed, -math.inf).argmax()))
        guide.accept(tokens[-1])
    return vocabulary.text_of(tokens)


@pytest.mark.slow
def test_constrained_replies_equal_the_plainest_decoding(model, samples):
    predictions = predict(model, TASK, samples, SETTINGS)
    assert len(set(texts(predictions))) > 2  # the model is lively, so that equality means something
    for sample, prediction in zip(samples, predictions, strict=True):
        if not prediction.cut:
            assert prediction.text == reference(model, sample, 120)
    assert sum(not prediction.cut for prediction in predictions) >= 2
    assert [prediction.id for prediction in predictions] == [sample.id for sample in samples]


@pytest.mark.slow
def test_free_replies_equal_generate(model, samples):
    predictions = predict(model, TASK, samples, settings(max_new_tokens=24), constrained=False)
    vocabulary = vocabulary_of(model)
    for sample, prediction in zip(samples, predictions, strict=True):
        inputs = prompt_inputs([TASK.phrase(sample.unlabelled())], model)
        ids = model.model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert prediction.text == vocabulary.text_of(ids.tolist())
        assert prediction.problem  # noise is no JSON: counted, not raised


@pytest.mark.slow
@pytest.mark.parametrize("constrained", [True, False])
def test_batch_compaction_and_order_change_nothing(model, samples, constrained, monkeypatch):
    most = 120 if constrained else 40

    def read(order, batch):
        return predict(model, TASK, order, settings(batch_size=batch, max_new_tokens=most), constrained=constrained)

    alone, together = read(samples, 1), read(samples[::-1], 5)[::-1]
    monkeypatch.setattr(decode, "COMPACT_BELOW", -1.0)  # finished rows stay
    monkeypatch.setattr(decode, "FULL_SHARE", {})  # blocks as wide as the longest span, as on a GPU
    staying = read(samples, 3)
    for others in (together, staying):
        assert texts(others) == texts(alone)
        for one, other in zip(alone, others, strict=True):
            assert means(other) == pytest.approx(means(one), rel=1e-3, abs=2e-6)


@pytest.mark.slow
def test_forced_tokens_fed_together_equal_forced_tokens_decoded(model, samples):
    together = predict(model, TASK, samples, SETTINGS)
    singly = predict(model, TASK, samples, SETTINGS, engine=make_engine(model, SETTINGS, feed_forced=False))
    for feed_forced, predictions in ((True, together), (False, singly)):
        compared = 0
        for sample, prediction in zip(samples, predictions, strict=True):
            if not prediction.cut:
                assert prediction.text == reference(model, sample, 120, feed_forced=feed_forced)
                compared += 1
        assert compared >= 2
    if len(model.tokenizer) < 300:  # one token per byte: forced text has one split, whoever splits it
        assert texts(singly) == texts(together)
        for one, other in zip(singly, together, strict=True):
            assert means(other) == pytest.approx(means(one), rel=1e-3, abs=2e-6)
    assert all(prediction.problem is None for prediction in (*together, *singly))


@pytest.mark.slow
def test_confidence_is_the_models_own_probability(model, samples):
    """Teacher forcing over the whole reply gives the probabilities that were collected block by block."""
    vocabulary = vocabulary_of(model)
    grammar = Grammar(TASK.schema(), vocabulary)
    questions = [TASK.phrase(sample.unlabelled()) for sample in samples]
    rows = [
        [ReplySequence(place, encode(question, model), question.media, DecodingMode.CONSTRAINED, grammar.guide(), 120)]
        for place, question in enumerate(questions)
    ]
    for row in decode.GenerationEngine(model, vocabulary, 4).run(iter(rows)):
        inputs = prompt_inputs([questions[row.index]], model)
        ids = torch.cat([inputs["input_ids"], torch.tensor([row.tokens])], dim=1)
        with torch.inference_mode():
            logprobs = model.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0].log_softmax(-1)
        start = inputs["input_ids"].shape[1] - 1
        for place, (token, logprob) in enumerate(zip(row.tokens, row.logprobs, strict=True)):
            if not math.isinf(logprob) and logprob != 0.0:
                assert logprob == pytest.approx(float(logprobs[start + place, token]), abs=1e-3)


@pytest.mark.slow
def test_no_answer_can_reach_the_model(model, samples, monkeypatch):
    seen: list[list[int]] = []
    module = sys.modules["mllm_tailor.generation.predictor"]
    real = module.encode

    def spy(question, model):
        encoded = real(question, model)
        seen.append(encoded.ids.tolist())
        return encoded

    monkeypatch.setattr(module, "encode", spy)
    poisoned = predict(model, TASK, samples, SETTINGS)
    with_poison = sorted(seen)
    seen.clear()
    clean = [replace(sample, fields={"company": "other"}, extra={"ocr": "other"}, group="g") for sample in samples]
    assert texts(predict(model, TASK, clean, SETTINGS)) == texts(poisoned)
    assert sorted(seen) == with_poison
    assert not any("POISON" in model.tokenizer.decode(ids) for ids in with_poison)
    asked = [replace(sample, prompt="How much?", answer="POISON") for sample in samples]
    seen.clear()
    predict(model, ASK, asked, settings(max_new_tokens=2))
    assert len(seen) == 5 and not any("POISON" in model.tokenizer.decode(ids) for ids in seen)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 9, 20, 45])
def test_tight_limits_still_end_in_json(model, samples, limit):
    short = settings(max_new_tokens=limit)
    for forward in (True, False):
        predictions = predict(model, ENDLESS, samples, short, engine=make_engine(model, short, feed_forced=forward))
        for prediction in predictions:
            assert prediction.problem is None and prediction.cut
            assert list(json.loads(prediction.text)) == list(ENDLESS.field_names)
            assert all(0 <= value <= 1 for value in means(prediction).values())


@pytest.mark.slow
def test_questions_about_one_picture_read_it_once(model, samples):
    questions = ["How much?", "Who?", "How much was paid, and when?", "When?"]
    asked = [replace(samples[place], prompt=text, id=f"{place}{text}") for text in questions for place in (4, 1)]
    with tiles_seen(model) as shared:
        together = predict(model, ASK, asked, settings(batch_size=8, max_new_tokens=16))
    with tiles_seen(model) as apart:
        alone = predict(model, ASK, asked, settings(batch_size=1, max_new_tokens=16))
    assert texts(together) == texts(alone)
    assert sum(shared) * len(questions) == sum(apart)


@pytest.mark.slow
def test_both_modes_at_once_equal_each_alone(model, samples):
    mixed = [*samples, Sample("gone", extra={"problem": "gone.png: no such file"})]
    done = []
    with tiles_seen(model) as shared:
        both = predict_both(
            model, TASK, mixed, settings(batch_size=3, max_new_tokens=50), on_done=lambda *what: done.append(what)
        )
    for mode in both:
        with tiles_seen(model) as apart:
            alone = predict(
                model, TASK, mixed, settings(batch_size=3, max_new_tokens=50), constrained=mode == "constrained"
            )
        assert texts(both[mode]) == texts(alone)
        assert sum(shared) == sum(apart)
        assert sorted(found.id for found, which in done if which == mode) == sorted(sample.id for sample in mixed)


@pytest.mark.slow
def test_memory_of_pictures_changes_nothing_but_the_work(model, samples):
    memory = VisionFeatureCache()
    with tiles_seen(model) as first:
        read = predict(model, TASK, samples, settings(max_new_tokens=40), cache=memory)
    with tiles_seen(model) as second:
        again = predict(model, TASK, samples, settings(max_new_tokens=40, batch_size=2), cache=memory)
    assert first and not second and memory.hits == len(samples)
    assert texts(again) == texts(read) == texts(predict(model, TASK, samples, settings(max_new_tokens=40)))
    before = weights_key(model, bf16=False)
    weight = next(model.model.model.vision_tower.parameters())
    weight.data += 1e-3
    assert weights_key(model, bf16=False) != before  # trained vision weights never meet old features
    weight.data -= 1e-3
    assert weights_key(model, bf16=True) != before
    small = VisionFeatureCache(limit=memory.bytes // 2)
    predict(model, TASK, samples, settings(max_new_tokens=2), cache=small)
    assert 0 < small.bytes <= small.limit


def test_the_vision_side_in_bf16_is_near_and_in_the_models_own_format(model, samples):
    question = encode(TASK.phrase(samples[4].unlabelled()), model)
    exact, mixed = (
        VisionEncoder(opened).outputs([question])["image"].pooler_output
        for opened in (model, replace(model, mixed_precision=True))
    )
    assert exact.dtype == mixed.dtype == model.dtype
    difference = (exact - mixed).norm() / exact.norm()
    assert 1e-5 < difference < 3e-2  # bf16 keeps eight bits


def test_what_cannot_be_read_is_a_row_and_stops_nothing(model, samples, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_text("not a picture")
    mixed = [
        samples[0],
        Sample("broken", (Media("image", broken),), source=str(broken)),
        Sample("gone", extra={"problem": "gone.png: no such file"}),
        samples[1],
    ]
    done = []
    model.model.train()
    found = predict(model, TASK, mixed, settings(max_new_tokens=20), on_done=done.append)
    assert model.model.training
    model.model.eval()
    assert [prediction.id for prediction in found] == ["0", "broken", "gone", "1"]
    assert str(broken) in found[1].problem and found[2].problem == "gone.png: no such file"
    assert found[0].problem is None and found[3].problem is None and not found[1].fields
    assert sorted(prediction.id for prediction in done) == ["0", "1", "broken", "gone"]


def test_a_prompt_that_fills_the_context_is_a_row(model, samples):
    long = replace(samples[0], prompt="x" * 9000)
    short = replace(samples[0], prompt="x")
    first, second = predict(model, ASK, [long, short], settings(max_new_tokens=3))
    assert "context" in first.problem and second.text


def test_out_of_memory_names_the_sample_and_the_mend(model, samples, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decode.GenerationEngine, "_step", full)
    with pytest.raises(
        ModelError, match=r"with 4 samples side by side; the longest is \d .* — set predict.batch_size=2"
    ):
        predict(model, TASK, samples, SETTINGS)


def test_values_no_file_can_hold_are_mended(model, samples, monkeypatch):
    reply = r'{"company": "\ud800", "total": 1e999}'
    monkeypatch.setattr(Vocabulary, "bytes_of", lambda self, token: reply.encode() if token == -1 else b"")
    monkeypatch.setattr(
        ReplySequence, "append", lambda row, *_, **__: row.__dict__.update(tokens=[-1], logprobs=[0.0], done=True)
    )
    (found,) = predict(model, TASK, samples[:1], SETTINGS, constrained=False)
    assert found.fields == {"company": "\ufffd", "total": None}
    assert means(found) == {"company": 1.0, "total": 1.0}
    json.dumps(found.row(), allow_nan=False).encode()
