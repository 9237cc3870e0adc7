"""Prompts kept apart, and fields written side by side behind them: the same replies as when each is read alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fixtures.replies import means
from fixtures.small_job import save_lively
from PIL import Image

from mllm_tailor.core.errors import ModelError, RecipeError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.generation import predict, predict_both, prefill
from mllm_tailor.generation.constrain import Vocabulary
from mllm_tailor.generation.engine import GenerationEngine
from mllm_tailor.models import LoadedModel
from mllm_tailor.models.bundled.build import build_tokenizer
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import FieldTask, open_task

FIELDS = {
    "company": {"type": "string", "max_length": 12},
    "kind": {"type": "choice", "choices": ["cash", "card", "cheque"]},
    "lines": {"type": "list", "items": {"name": {"type": "string", "max_length": 4}}, "max_items": 2},
    "count": "boolean",
    "total": {"type": "amount", "max_length": 6},
}
TASK = open_task("extract", FIELDS)
TOGETHER = Predict(batch_size=3, max_new_tokens=100)
APART = Predict(batch_size=3, max_new_tokens=100, fields="side_by_side")


@pytest.fixture(scope="module", params=[4, 2], ids=["a key a head", "keys shared by heads"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("model")
    return save_lively(folder, build_tokenizer(), 5, head_width=8, key_value_heads=request.param)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Five pictures of different shapes, so that prompts differ in length."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    made = []
    for number in range(5):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (20 + 15 * number, 40, 3), dtype=np.uint8)).save(path)
        made.append(Sample(str(number), (Media("image", path),)))
    return made


class Alone:
    """The same question about the same document, answered for one field."""

    name = "extract"

    def __init__(self, field: str) -> None:
        self.field_names = (field,)
        self.phrase, self.parse = TASK.phrase, TASK.parse

    def schema(self) -> dict:
        return TASK.alone(self.field_names[0])


def texts(predictions):
    return [prediction.text for prediction in predictions]


@pytest.mark.slow
def test_prompts_kept_apart_say_what_copied_ones_say(
    model: LoadedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = predict_both(model, TASK, samples, TOGETHER)
    monkeypatch.setattr(prefill, "shares_prefixes", lambda model: False)
    copied = predict_both(model, TASK, samples, TOGETHER)
    for held in kept:
        assert len(set(texts(copied[held]))) > 1, "else nothing is compared"
        assert texts(kept[held]) == texts(copied[held])
        for one, other in zip(kept[held], copied[held], strict=True):
            assert means(one) == pytest.approx(means(other), abs=1e-5)


def test_prompts_are_kept_apart_where_the_layers_are_known(
    model: LoadedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = Vocabulary(model.tokenizer, model.model.config.text_config.vocab_size, sorted(model.stop_ids))
    assert GenerationEngine(model, vocabulary, 4).prefill.shares_prefixes
    monkeypatch.setattr(model.model.config.text_config, "sliding_window", 64)
    assert not GenerationEngine(model, vocabulary, 4).prefill.shares_prefixes


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
def test_fields_side_by_side_say_what_each_says_alone(
    model: LoadedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    if not apart:
        monkeypatch.setattr(prefill, "shares_prefixes", lambda model: False)
    done: list[str] = []
    missing = Sample("gone", extra={"problem": "gone.png: no such file"})
    found = predict(model, TASK, [*samples, missing], APART, on_done=lambda one: done.append(one.id))
    assert sorted(done) == sorted([*(sample.id for sample in samples), "gone"])
    assert found.pop().problem == "gone.png: no such file"
    for name in FIELDS:
        for one, alone in zip(found, predict(model, Alone(name), samples, TOGETHER), strict=True):
            assert one.fields[name] == alone.fields[name]
            assert means(one)[name] == pytest.approx(means(alone)[name], abs=1e-5)
    for one in found:
        assert json.loads(one.text) == one.fields
        assert list(one.fields) == list(FIELDS)
        assert not one.cut and one.problem is None and one.seconds > 0
    assert len(set(texts(found))) > 1


@pytest.mark.slow
def test_free_replies_are_written_whole(model: LoadedModel, samples: list[Sample]) -> None:
    both, free = predict_both(model, TASK, samples, APART), predict(model, TASK, samples, TOGETHER, constrained=False)
    assert texts(both[DecodingMode.UNCONSTRAINED]) == texts(free)
    assert texts(both[DecodingMode.CONSTRAINED]) == texts(predict(model, TASK, samples, APART))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 14, 20])
def test_a_limit_is_one_of_each_field(model: LoadedModel, samples: list[Sample], limit: int) -> None:
    found = predict(model, TASK, samples, APART.model_copy(update={"max_new_tokens": limit}))
    assert all(json.loads(one.text) == one.fields and list(one.fields) == list(FIELDS) for one in found)
    assert any(one.cut for one in found)


def test_a_task_without_fields_is_refused(model: LoadedModel, samples: list[Sample]) -> None:
    task = open_task("answer", {})
    assert not isinstance(task, FieldTask)
    with pytest.raises(RecipeError, match=r"predict\.fields"):
        predict(model, task, samples, APART)


def test_another_engine_is_not_asked_for_single_fields(model: LoadedModel, samples: list[Sample]) -> None:
    vocabulary = Vocabulary(model.tokenizer, model.model.config.text_config.vocab_size, sorted(model.stop_ids))
    with pytest.raises(ModelError, match=r"predict\.fields"):
        predict(model, TASK, samples, APART, engine=GenerationEngine(model, vocabulary, 4))
