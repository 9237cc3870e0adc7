"""Contrastive tuning: the loss against its formula, cached gradients against a big batch, rankings, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures.pairs import write_pair_family
from fixtures.small_job import difference, small_recipe, snapshot, train
from PIL import Image
from torch.nn.functional import normalize

from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.device import seed_everything
from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.generation import predict
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel, collate, encode, load_model
from mllm_tailor.recipe import Predict, Recipe
from mllm_tailor.scoring import METRICS
from mllm_tailor.tasks import open_task
from mllm_tailor.training.objectives.contrastive import clip_loss, siglip_loss

COLOURS = ["red", "green", "blue", "white", "black", "yellow", "grey", "brown"]


def draw(folder: Path, count: int = 8) -> list[Sample]:
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(count):
        Image.new("RGB", (40, 40 + number), COLOURS[number % 8]).save(folder / f"{number}.png")
        text = f"a {COLOURS[number % 8]} sheet"
        samples.append(Sample(str(number), (Media("image", folder / f"{number}.png"),), answer=text))
    return samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw(tmp_path_factory.mktemp("sheets"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {kind: tmp_path_factory.mktemp("pairs") / kind for kind in ("clip", "siglip")}
    for kind, folder in found.items():
        write_pair_family(folder, kind)
    return found


def start(folder: Path, spec: dict[str, Any], **settings: Any) -> tuple[LoadedModel, Any, Recipe]:
    recipe = small_recipe(spec, **settings).model_copy(update={"task": {"match": {}}})
    method, model = make_method(recipe), load_model(folder, dtype="float32", device="cpu")
    seed_everything(recipe.seed)
    method.apply(model)
    return model, method, recipe


class TestLosses:
    @pytest.mark.slow
    def test_clip_equals_transformers_and_the_formula(self, folders: dict[str, Path], samples: list[Sample]) -> None:
        model = load_model(folders["clip"], dtype="float32")
        batch = collate([encode(sample, model) for sample in samples], model)
        with torch.no_grad():
            told = model.model(**batch, return_loss=True)
            ours = clip_loss(told.image_embeds, told.text_embeds, model.model.logit_scale)
        assert float(ours) == pytest.approx(float(told.loss), rel=1e-5)
        logits = told.logits_per_image
        own = logits.diagonal()
        wanted = ((logits.logsumexp(0) - own).mean() + (logits.logsumexp(1) - own).mean()) / 2
        assert float(ours) == pytest.approx(float(wanted), rel=1e-5)

    def test_siglip_equals_transformers(self, folders: dict[str, Path], samples: list[Sample]) -> None:
        model = load_model(folders["siglip"], dtype="float32")
        batch = collate([encode(sample, model) for sample in samples], model)
        with torch.no_grad():
            told = model.model(**batch, return_loss=True)
            ours = siglip_loss(
                normalize(told.image_embeds, dim=-1), normalize(told.text_embeds, dim=-1),
                model.model.logit_scale, model.model.logit_bias,
            )  # fmt: skip
        assert float(ours) == pytest.approx(float(told.loss), rel=1e-5)

    def test_properties(self) -> None:
        """Random: near ln N; swapped sides: the same; equal vectors: lower; the scale stops at 100."""
        torch.manual_seed(0)
        pictures, texts = (normalize(torch.randn(64, 4096), dim=-1) for _ in range(2))
        scale = torch.tensor(0.0)
        assert float(clip_loss(pictures, texts, scale)) == pytest.approx(4.159, abs=0.02)
        assert torch.allclose(clip_loss(pictures, texts, scale), clip_loss(texts, pictures, scale))
        assert clip_loss(pictures, pictures, scale + 3) < 0.1
        assert torch.equal(clip_loss(pictures, texts, scale + 9), clip_loss(pictures, texts, scale + 10))


class TestCachedGradients:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["clip", "siglip"])
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_equal_one_big_pass(
        self, kind: str, dropout: float, folders: dict[str, Path], samples: list[Sample], tmp_path: Path
    ) -> None:
        """Passes of 3 of 8 pairs, scale and bias trained too. With dropout, only that a pass is drawn twice alike."""
        spec = {"name": "lora", "rank": 2, "dropout": dropout, "parts": ["vision", "projector", "language"]}
        spec = {"name": "lora", "parts": {part: spec | {"method": "lora"} for part in spec.pop("parts")}}
        for part in spec["parts"].values():
            part.pop("name")
        spec["parts"]["head"] = "full"
        ends, losses = [], []
        for most in (8, 3):
            settings = {
                "batch_size": 8,
                "micro_batch_size": most,
                "epochs": 2,
                "optimizer": "sgd",
                "learning_rate": 0.05,
            }
            model, method, recipe = start(folders[kind], spec, **settings, max_grad_norm=None)
            losses.append(train(model, method, samples, recipe, tmp_path / str(most)).losses)
            ends.append(snapshot(model))
        if dropout:
            assert all(abs(left - right) < 0.5 for left, right in zip(*losses, strict=True))
            return
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        moved = [name for name in ends[0] if "lora_B" in name or name.startswith("logit")]
        apart = {name: difference(ends[0][name], ends[1][name]) for name in moved if ends[0][name].any()}
        assert len(apart) > 10
        assert max(apart.values()) < 1e-3, apart  # below 1e-6 but where next to nothing moved

    @pytest.mark.slow
    def test_it_learns_which_belong_together(
        self, folders: dict[str, Path], samples: list[Sample], tmp_path: Path
    ) -> None:
        spec = {"name": "full", "parts": ["vision", "projector", "language"]}
        settings = {"batch_size": 8, "micro_batch_size": 4, "epochs": 25, "learning_rate": 3e-3}
        model, method, recipe = start(folders["clip"], spec, **settings)
        result = train(model, method, samples, recipe, tmp_path)
        assert result.losses[-1] < 0.6 * result.losses[0]
        task = open_task("match")
        found = predict(model, task, samples, Predict())
        recall = METRICS.load("recall_1")
        right = [recall.sample(task.labels(one), said, {}).numerator for one, said in zip(samples, found, strict=True)]
        assert sum(right) / len(right) > 0.5


class TestRankings:
    def test_recall(self) -> None:
        labels = {"text": "a", "picture": "7"}
        said = Prediction("7", "", {"text": ["b", "a"], "picture": ["7", "1"]})
        assert [METRICS.load(f"recall_{k}").sample(labels, said, {}).numerator for k in (1, 5, 10)] == [0.5, 1, 1]
        assert METRICS.load("recall_10").sample(labels, Prediction("7", "", {"text": "b"}), {}).numerator == 0

    def test_equal_texts_are_one_and_an_unreadable_picture_is_no_candidate(
        self, folders: dict[str, Path], samples: list[Sample], tmp_path: Path
    ) -> None:
        (tmp_path / "broken.png").write_bytes(b"no picture")
        broken = Sample("x", (Media("image", tmp_path / "broken.png"),), answer="nothing")
        twice = Sample("y", samples[0].media, answer=samples[0].answer)
        model = load_model(folders["clip"])
        found = predict(model, open_task("match"), [*samples[:3], broken, twice], Predict(batch_size=2))
        assert found[3].problem
        assert not found[3].fields
        assert sorted(found[0].fields["text"]) == sorted({str(sample.answer) for sample in samples[:3]})
        assert sorted(found[0].fields["picture"]) == ["0", "1", "2", "y"]

    def test_a_model_that_writes_cannot_match(self, tiny_model_folder: Path, samples: list[Sample]) -> None:
        with pytest.raises(ModelError, match="use a CLIP or SigLIP"):
            predict(load_model(tiny_model_folder), open_task("match"), samples, Predict())


@pytest.mark.slow
def test_a_run(folders: dict[str, Path], tmp_path: Path) -> None:
    """From a folder of pictures and texts to recall both ways, with floors that do not know the answer."""
    data = tmp_path / "data"
    drawn = draw(data, 16)
    rows = [{"file_name": f"{one.id}.png", "caption": f"sheet {one.id}, {one.answer}"} for one in drawn]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "match.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "name": "match", "model": str(folders["clip"]), "task": "match", "output": str(tmp_path / "runs"),
                "data": {"train": str(data), "held_out": {"fraction": 0.4}, "dev": 0.2},
                "method": {"name": "lora", "rank": 4, "parts": ["vision", "language"]},
                "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3},
            }
        )
    )  # fmt: skip
    run = run_recipe(recipe, [], exclude_faulty=True, fresh=False)
    scores = json.loads(run.scores.read_text())
    assert scores["metrics"] == ["recall_1", "recall_5", "recall_10"]
    systems = {name: found["metrics"]["recall_1"]["value"] for name, found in scores["systems"].items()}
    assert {"base_unconstrained", "tuned_unconstrained", "baseline_constant"} <= set(systems)
    assert systems["baseline_constant"] == 0
