"""Classification end to end: classes read from the data, replies compared by likelihood, a class never learned."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from fixtures.replies import means
from PIL import Image, ImageDraw
from rich.console import Console

from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.io import read_json, read_jsonl
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.generation import choose
from mllm_tailor.generation.loglikelihood import LikelihoodScorer
from mllm_tailor.models import LoadedModel, collate, encode, load_model
from mllm_tailor.models.encoded import NO_LOSS
from mllm_tailor.recipe import Predict, make_recipe
from mllm_tailor.reporting.tables import confusion_table
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.resolve import resolve
from mllm_tailor.scoring.confusion import NO_CLASS, Confusion, macro_f1
from mllm_tailor.tasks import open_task

CLASSES = ["Swiping Up", "No gesture", "Tap"]


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> LoadedModel:
    return load_model(tiny_model_folder, dtype="float32", device="cpu")


def shapes(folder: Path, labels: list[str]) -> Path:
    """A labelled folder: one picture a label, of different sizes."""
    folder.mkdir()
    rows = []
    for number, label in enumerate(labels):
        picture = Image.new("RGB", (60 + 60 * (number % 2), 60), "white")
        ImageDraw.Draw(picture).ellipse((5 + number, 5, 40, 30 + number), fill="black")
        picture.save(folder / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "label": label}))
    (folder / "train.jsonl").write_text("\n".join(rows))
    return folder


def test_likelihoods_are_those_of_reading_each_whole_reply_alone(model: LoadedModel, tmp_path: Path) -> None:
    shapes(tmp_path / "data", CLASSES)
    task = open_task("classify", CLASSES)
    samples = [Sample(str(n), (Media("image", tmp_path / "data" / f"{n}.png"),)) for n in range(3)]
    asked = [task.phrase(sample) for sample in samples]
    expected = torch.zeros(3, len(CLASSES))
    for row, question in enumerate(asked):
        for column, reply in enumerate(task.choices(question)):
            whole = encode(replace(question, answer=reply), model)
            batch = collate([whole], model)
            labels = batch.pop("labels")[0]
            with torch.inference_mode():
                chances = model.model(**batch).logits[0].log_softmax(-1)
            places = (labels != NO_LOSS).nonzero().squeeze(1)
            expected[row, column] = chances[places - 1, labels[places]].sum()
    scorer = LikelihoodScorer(model, task)
    prompts = map(scorer.encode, samples)
    found = scorer.score([(encoded, prompt.replies) for prompt in prompts for encoded in prompt.framings])
    assert torch.allclose(torch.stack(found), expected, atol=1e-3)
    predictions = choose(model, task, samples, Predict(batch_size=2))
    best = [CLASSES[column] for column in expected.argmax(-1)]
    assert [prediction.fields["class"] for prediction in predictions] == best
    shares = expected.softmax(-1).amax(-1)
    confidences = torch.tensor([means(prediction)["class"] for prediction in predictions])
    assert torch.allclose(confidences, shares, atol=1e-3)


def test_a_file_that_cannot_be_read_is_a_row_with_a_problem(model: LoadedModel, tmp_path: Path) -> None:
    shapes(tmp_path / "data", CLASSES)
    good = Sample("good", (Media("image", tmp_path / "data" / "0.png"),))
    lost = Sample("lost", (Media("image", tmp_path / "lost.png"),))
    first, second = choose(model, open_task("classify", CLASSES), [lost, good], Predict())
    assert "no such file" in str(first.problem) and not first.fields
    assert second.problem is None and second.fields["class"] in CLASSES


def test_classes_are_read_from_all_labelled_samples(tmp_path: Path) -> None:
    data = shapes(tmp_path / "data", ["Tap", "swiping  up", "tap", "No gesture"])
    recipe = resolve(make_recipe({"data": str(data), "task": {"classify": {}}})).recipe
    assert recipe.task["classify"]["classes"] == ["No gesture", "swiping up", "tap"]
    assert resolve(recipe).recipe == recipe
    named = make_recipe({"data": str(tmp_path / "nowhere"), "task": {"classify": CLASSES}})
    assert resolve(named).recipe.task["classify"]["classes"] == CLASSES


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    data = shapes(tmp_path / "data", ["Tap", "tap"])
    with pytest.raises(DataError, match="only `tap` in the data"):
        resolve(make_recipe({"data": str(data), "task": "classify"}))


def confusion_of(true: list[str], said: list[str]) -> Confusion:
    labels = [{"class": name} for name in true]
    return Confusion.of(labels, [Prediction("", "", {"class": name} if name else {}) for name in said], CLASSES)


def test_the_matrix_and_macro_f1_by_hand() -> None:
    up, none = CLASSES[:2]
    true = [up, up, up, up, none, none]
    before, after = confusion_of(true, [up] * 6), confusion_of(true, [up, up, up, none, none, ""])
    assert after.counts.tolist() == [[3, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert before.by_class == pytest.approx([80, 0, 0])
    assert after.by_class == pytest.approx([100 * 6 / 7, 50, 0])
    one, other, difference = macro_f1(before, after)
    assert (one.value, other.value) == pytest.approx((40, (600 / 7 + 50) / 2))  # Tap is in no label
    assert difference.value == pytest.approx(other.value - one.value)
    assert difference.low <= difference.value <= difference.high
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(confusion_table(after))
    text = console.export_text()
    assert "1 Swiping Up" in text and NO_CLASS in text
    same = macro_f1(after, after)[2]
    assert same.value == 0 and same.low < 0 < same.high
    pooled = macro_f1(before, after, folds=2)[2]  # two models that share training data
    assert pooled.value == difference.value and pooled.high - pooled.low > difference.high - difference.low


@pytest.mark.slow
def test_a_run_reports_classes_columns_floors_and_what_was_never_learned(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    data = shapes(tmp_path / "data", ["Tap", "Swipe"] * 5 + ["Shake"])
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"split": "test" if number > 6 else "train", "camera": "new" if number == 8 else "old"}
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "shapes",
        "model": str(tiny_model_folder),
        "data": {"train": str(data), "held_out": {"column": "split", "value": "test"}, "dev": 0},
        "task": "classify",
        "method": {"name": "lora", "rank": 2},
        "train": {"epochs": 1, "batch_size": 4},
        "predict": {"max_new_tokens": 24},
        "score": "exact",
        "score_by": ["camera"],
        "output": str(tmp_path / "runs"),
    }
    (tmp_path / "shapes.yaml").write_text(yaml.safe_dump(values))
    run = run_recipe(tmp_path / "shapes.yaml", [], exclude_faulty=False, fresh=False)
    assert run.recipe().task["classify"]["classes"] == ["Shake", "Swipe", "Tap"]
    notes = [row["note"] for _, row in read_jsonl(run.ledger) if "note" in row]
    assert notes == ["its class `Shake` is in no training sample; scored all the same"]
    scores = read_json(run.scores)
    assert {f"{who}_likelihood" for who in ("base", "tuned")} <= set(scores["systems"])
    assert {value: part["count"] for value, part in scores["by"]["camera"].items()} == {"old": 3, "new": 1}
    page = run.report.read_text()
    shown = ("Confusion matrix", "Exact by camera", "Macro F1", "Majority answer", "Tuned, likelihood", notes[0])
    for text in shown:
        assert text in page


def test_a_column_nobody_has_is_refused_before_training(tmp_path: Path) -> None:
    data = shapes(tmp_path / "data", CLASSES * 4)
    recipe = make_recipe(
        {"data": {"train": str(data), "limit": 5}, "task": {"classify": CLASSES}, "score_by": ["lable"]}
    )
    with pytest.raises(RecipeError, match="did you mean `label`"):
        prepare(resolve(recipe), decode=False)
