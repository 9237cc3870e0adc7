"""Several framings of an image: what they change, how their readings are put to a vote, and where they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.small_job import noise_pictures, save_lively
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.sample import Location, Media, Prediction, Sample
from mllm_tailor.generation import choose, predict, predict_both
from mllm_tailor.generation.voting import check_framings, vote
from mllm_tailor.media.framing import FRAMINGS, framed, framed_size
from mllm_tailor.models import LoadedModel
from mllm_tailor.models.bundled.build import build_tokenizer
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.recipe.schema import MOST_FRAMINGS, Predict
from mllm_tailor.scoring.calibration import MARGIN, fit
from mllm_tailor.scoring.judged import JudgedValue
from mllm_tailor.tasks import field_kinds, open_task

TASK = open_task(
    "extract",
    {"company": "string", "total": "amount", "lines": {"type": "list", "items": {"name": "string", "price": "amount"}}},
)
KINDS = field_kinds(TASK)


def reading(fields: dict, **means: float) -> Prediction:
    """A prediction with these mean probabilities; names of paths have `__` for a dot."""
    raw = {path.replace("__", "."): {"mean": mean, "least": mean / 2} for path, mean in means.items()}
    return Prediction("a", f"text of {sorted(fields.items())}", fields, seconds=1.0, raw=raw)


def joined(*readings: Prediction) -> Prediction:
    return vote(readings, TASK.field_names, KINDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return save_lively(tmp_path_factory.mktemp("model"), build_tokenizer(), 3, head_width=16)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two pictures, a question without one, and a file that is missing."""
    folder = tmp_path_factory.mktemp("pictures")
    shown = noise_pictures(folder, (60, 80))
    return [*shown, Sample("text", prompt="?"), Sample("lost", (Media("image", folder / "lost.png"),))]


def test_framings_are_as_many_as_the_setting_allows_and_differ() -> None:
    rng = np.random.default_rng(1)
    page = np.full((200, 120, 3), (250, 240, 230), np.uint8)
    page[20:180, 20:100] = rng.integers(0, 255, (160, 80, 3))
    image = Image.fromarray(page)
    views = [framed(image, index) for index in range(len(FRAMINGS))]
    assert len(FRAMINGS) == MOST_FRAMINGS and views[0] is image
    assert [view.size for view in views] == [framed_size(image.size, index) for index in range(len(FRAMINGS))]
    assert len({view.tobytes() for view in views}) == len(views)
    assert all(view.getpixel((0, 0)) == (250, 240, 230) for view in views)


def test_the_value_of_the_most_weight_is_taken_in_the_words_of_the_surest() -> None:
    first = reading({"company": "ACME", "total": "1,00"}, company=0.9, total=0.6)
    second = reading({"company": "ACNE", "total": "1.00"}, company=0.6, total=0.7)
    third = reading({"company": "acne ", "total": "7.00"}, company=0.7, total=0.9)
    result = joined(first, second, third)
    assert result.fields == {"company": "acne ", "total": "1.00"}
    assert result.raw["company"] == {"mean": round(1.3 / 3, 6), "least": 0.325, "framings": round(2 / 3, 6)}
    assert result.raw["total"]["mean"] == pytest.approx(1.3 / 3, abs=1e-6)
    assert result.candidates == {"company": ["ACME"], "total": ["7.00"]}
    assert result.seconds == 3 and result.text == '{"company": "acne ", "total": "1.00"}'
    assert set(result.raw["total"]) <= set(MARGIN)


def test_two_readings_that_differ_are_decided_by_confidence_then_by_order() -> None:
    first, second = reading({"total": "1"}, total=0.4), reading({"total": "2"}, total=0.5)
    assert joined(first, second).fields == joined(second, first).fields == {"total": "2"}
    assert joined(first, second).text == second.text
    level = replace(second, raw=first.raw)
    assert joined(first, level).fields == {"total": "1"}


def test_a_list_is_one_value_and_its_cells_are_compared_one_by_one() -> None:
    rows = [{"name": "TEA", "price": "1.0"}, {"name": "BUN", "price": "2.0"}]
    other = [{"name": "TEA", "price": "1.00"}, {"name": "BUM", "price": "2.0"}]
    scores = {"lines__0__name": 0.8, "lines__0__price": 0.8, "lines__1__name": 0.8, "lines__1__price": 0.8}
    result = joined(reading({"lines": rows}, lines=0.9, **scores), reading({"lines": other}, lines=0.8, **scores))
    assert result.fields == {"lines": rows}
    assert {path: scores["framings"] for path, scores in result.raw.items()} == {
        "lines": 0.5, "lines.0.name": 1, "lines.0.price": 1, "lines.1.name": 0.5, "lines.1.price": 1
    }  # fmt: skip


def test_locations_are_those_of_the_image_as_it_is() -> None:
    spot = {name: (Location(0, (1, 2, 3, 4), "attention"),) for name in ("company", "total")}
    first = replace(reading({"company": "A", "total": "1"}, company=0.9, total=0.1), where=spot)
    second = reading({"company": "A.", "total": "2"}, company=0.1, total=0.9)
    assert joined(first, second).where == {"company": spot["company"]}


def test_a_framing_that_could_not_be_read_has_no_vote() -> None:
    lost = Prediction("a", "{", problem="broken")
    whole = reading({"total": "1"}, total=0.8)
    result = joined(lost, whole)
    assert result.fields == {"total": "1"} and result.problem is None and result.raw["total"]["mean"] == 0.4
    assert joined(lost, lost).problem == "broken"


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8), st.sampled_from(["1.00", "RM 1"]))
def test_framings_that_agree_keep_the_value_and_are_as_sure(means: list[float], written: str) -> None:
    agreeing = [reading({"total": written if number else "1.0"}, total=mean) for number, mean in enumerate(means)]
    result = joined(*agreeing)
    score = result.raw["total"]
    assert float(str(result.fields["total"]).removeprefix("RM ")) == 1 and score["framings"] == 1
    assert min(means) - 1e-6 <= score["mean"] <= max(means) + 1e-6
    against = reading({"total": "9.99"}, total=0.001)
    assert joined(*agreeing, against).raw["total"]["mean"] <= score["mean"]


@pytest.mark.parametrize(("name", "told"), [("answer", "text"), ("caption", "text"), ("ground", "regions")])
def test_what_cannot_be_put_to_a_vote_is_refused(name: str, told: str) -> None:
    task = open_task(name, {})
    check_framings(task, Predict())
    with pytest.raises(RecipeError, match=rf"predict\.framings: `{name}` replies with {told}.*=1"):
        check_framings(task, Predict(framings=2))


def test_predictions_join_the_framings_in_both_modes(
    model: LoadedModel, samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    settings = Predict(batch_size=3, max_new_tokens=24, framings=3)
    single = settings.model_copy(update={"framings": 1})
    task = open_task("extract", {"company": {"max_length": 6}})
    modes = (DecodingMode.CONSTRAINED, DecodingMode.UNCONSTRAINED)
    each = {mode: [] for mode in modes}
    for framing in range(3):
        framings = [
            replace(sample, media=tuple(replace(item, framing=framing) for item in sample.media)) for sample in samples
        ]
        for mode, predictions in predict_both(model, task, framings, single).items():
            each[mode].append(predictions)
    both = predict_both(model, task, samples, settings)
    for mode in modes:
        for number in range(2):
            readings = [predictions[number] for predictions in each[mode]]
            expected = vote(readings, task.field_names, field_kinds(task))
            result = both[mode][number]
            assert (result.text, result.fields) == (expected.text, expected.fields)
            for path, scores in expected.raw.items():
                assert result.raw[path] == pytest.approx(scores, abs=1e-4)
        assert "lost.png" in str(both[mode][3].problem)
    constrained = both[DecodingMode.CONSTRAINED]
    assert constrained[2].raw["company"]["framings"] == 1  # a question without an image is read once
    assert "1 samples show no image and are read once" in caplog.text
    beside = predict(model, task, samples[:1], settings.model_copy(update={"fields": "side_by_side", "num_beams": 2}))
    assert set(beside[0].raw["company"]) == {"mean", "least", "beams", "framings"}


def test_shares_of_classes_are_averaged(model: LoadedModel, samples: list[Sample]) -> None:
    task = open_task("classify", ["tap", "swipe"])
    shares = []
    for framing in range(2):
        media = tuple(replace(item, framing=framing) for item in samples[0].media)
        (single,) = choose(model, task, [replace(samples[0], media=media)], Predict())
        share = single.raw["class"]["mean"]
        shares.append(share if single.fields["class"] == "tap" else 1 - share)
    (result,) = choose(model, task, samples[:1], Predict(framings=2))
    tap = sum(shares) / 2
    assert result.fields["class"] == ("tap" if tap >= 0.5 else "swipe")
    assert result.raw["class"]["mean"] == pytest.approx(max(tap, 1 - tap), abs=1e-5)
    assert set(result.raw["class"]) == {"mean", "framings"}


def test_a_framing_is_no_part_of_what_a_run_keeps(tmp_path: Path) -> None:
    from mllm_tailor.run.data_record import plain

    assert "framing" not in plain(Sample("a", (Media("image", tmp_path / "a.png"),)))["media"][0]


def test_a_calibration_reads_how_many_framings_agree_and_rises_with_them() -> None:
    rng = np.random.default_rng(0)
    values = []
    for number in range(200):
        share, mean = rng.choice([0.5, 1.0]), rng.uniform(0.5, 1)
        scores = {"mean": mean * share, "least": mean, "framings": share}
        values.append(JudgedValue("total", scores, bool(rng.uniform() < 0.2 + 0.7 * (share == 1)), number, number))
    calibration = fit(values)
    assert calibration.scores == ("mean", "least", "framings")
    alone, agreed = (
        calibration.confidence({"total": {"mean": 0.7 * share, "least": 0.7, "framings": share}})["total"]
        for share in (0.5, 1.0)
    )
    assert alone < 0.5 < agreed
