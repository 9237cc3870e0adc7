"""The whole job over a run folder, on drawn receipts and a tiny random model: what is written, kept, refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from torch import Tensor

from mllm_tailor.cli.app import run_command
from mllm_tailor.commands.chat import chat, opening, stream
from mllm_tailor.commands.check import check_recipe
from mllm_tailor.commands.compare import compare_runs
from mllm_tailor.commands.compare_methods import compare_methods
from mllm_tailor.commands.init import write_recipe
from mllm_tailor.commands.merge import export_adapter, merge_run
from mllm_tailor.commands.predict import open_predictor, predict_paths
from mllm_tailor.commands.run import report_run, run_recipe
from mllm_tailor.commands.verify import agreement, observe, verify_run
from mllm_tailor.core.errors import DataError, RecipeError, RunError
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel, generate, load_model, vision_cache
from mllm_tailor.models.vision_cache import image_features
from mllm_tailor.recipe import Prefer, make_recipe, read_recipe
from mllm_tailor.run.budget import read_budget
from mllm_tailor.run.data_record import read_held_out, write_held_out
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.predict import open_for_training, open_tuned
from mllm_tailor.run.resolve import resolve
from mllm_tailor.run.run_dir import open_run, own_run, read_predictions, start_run
from mllm_tailor.run.variants import read_variants, with_variant
from mllm_tailor.synthetic import draw_folder


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training receipts and four held out."""
    folder = tmp_path_factory.mktemp("receipts")
    draw_folder(folder, 8, 4, seed=5)
    return folder


def write_yaml(folder: Path, data: Path, model: Path, **changes: object) -> Path:
    values = {
        "name": "tiny",
        "model": str(model),
        "data": {
            "train": str(data),
            "held_out": {"column": "split", "value": "dev"},
            "dev": 0.2,
            "transcription_share": 0.5,
        },
        "task": {"extract": {"company": "string", "date": "date", "address": "string", "total": "amount"}},
        "method": {"name": "qlora", "rank": 4, "parts": ["language"]},
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
        "predict": {"max_new_tokens": 24},
        "output": str(folder / "runs"),
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.fixture(scope="module")
def vision_passes() -> list[Tensor]:
    """The tiles of every pass over the vision side of the finished run."""
    return []


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, receipts: Path, tiny_model_folder: Path, vision_passes: list[Tensor]
) -> Path:
    """A finished run folder."""
    recipe = write_yaml(tmp_path_factory.mktemp("job"), receipts, tiny_model_folder)

    def counted(model: LoadedModel, pixels: Tensor, *, bf16: bool) -> Tensor:
        vision_passes.append(pixels)
        return image_features(model, pixels, bf16=bf16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision_cache, "image_features", counted)
        return run_recipe(recipe, [], exclude_faulty=False, fresh=False).path


@pytest.mark.slow
def test_a_run_leaves_everything_a_reader_needs(finished: Path, receipts: Path) -> None:
    for name in ("recipe.yaml", "log.jsonl", "adapter", "predictions.jsonl", "scores.json", "environment.json"):
        assert (finished / name).exists(), name
    scores = json.loads((finished / "scores.json").read_text())
    assert set(scores["systems"]) == {
        f"{who}_{mode}" for who in ("base", "tuned") for mode in ("constrained", "unconstrained")
    } | {"baseline_constant", "baseline_nearest"}
    assert scores["gain"]["fuzzy"]["difference"].keys() == {"value", "low", "high", "units"}
    assert scores["systems"]["tuned_constrained"]["metrics"]["parse_rate"]["value"] == 100
    value = scores["gain"]["fuzzy"]["tuned"]["value"]
    assert f"{value:.1f}" in (finished / "report.html").read_text()


@pytest.mark.slow
def test_predictions_baseline_and_training_share_one_pass_over_each_image(
    finished: Path, receipts: Path, vision_passes: list[Tensor]
) -> None:
    assert len(vision_passes) == len(list(read_jsonl(receipts / "metadata.jsonl")))
    assert not (finished / "features").exists()


@pytest.mark.slow
def test_the_ledger_accounts_for_every_sample_once(finished: Path, receipts: Path) -> None:
    rows = [row for _, row in read_jsonl(finished / "samples.jsonl")]
    data = [row["id"] for _, row in read_jsonl(receipts / "metadata.jsonl")]
    assert sorted(row["id"] for row in rows if row["part"] != "transcription") == sorted(data)
    transcriptions = [row["id"] for row in rows if row["part"] == "transcription"]
    assert transcriptions and all(name.endswith("#read") for name in transcriptions)
    assert all(row["tokens"] > row["supervised_tokens"] > 0 for row in rows)


@pytest.mark.slow
def test_predict_writes_the_rows_of_the_run_again(finished: Path, receipts: Path, tmp_path: Path) -> None:
    """The saved adapter, opened anew, says of the same files what the run recorded."""
    recorded = {row.id: row for row in read_predictions(finished / "predictions.jsonl")}
    files = [receipts / "images" / f"{name}.jpg" for name in recorded]
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(b"not a picture")
    out = tmp_path / "out.jsonl"
    predict_paths(open_predictor(finished), [*files, bad], out)
    rows = [row for _, row in read_jsonl(out)]
    assert [row["id"] for row in rows] == [*recorded, "broken"]
    assert [row["text"] for row in rows[:-1]] == [row.text for row in recorded.values()]
    assert set(rows[0]) >= {"id", "fields", "raw", "text", "seconds"}
    assert "broken.jpg" in rows[-1]["problem"] and rows[-1]["text"] == ""


@pytest.mark.slow
def test_a_lost_baseline_is_made_again(finished: Path) -> None:
    names = ("predictions/baseline_nearest.jsonl", "scores.json")
    before = {name: (finished / name).read_bytes() for name in names}
    for name in (*names, "report.html"):
        (finished / name).unlink()
    run_recipe(finished.parent.parent / "tiny.yaml", [], exclude_faulty=False, fresh=False)
    assert {name: (finished / name).read_bytes() for name in names} == before


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_the_same(
    finished: Path, receipts: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Folders as a kill leaves them: half the base's replies; training done and half of the tuned replies."""
    recipe = write_yaml(tmp_path, receipts, tiny_model_folder)
    started = start_run(make_recipe(yaml.safe_load(recipe.read_text())))
    for name in (
        "samples.jsonl",
        "held_out.jsonl",
        "data.json",
        "environment.json",
        "cost_estimate.json",
        "training.json",
        "adapter",
    ):
        source, target = finished / name, started.path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for which in (
        "base_constrained",
        "base_unconstrained",
        "baseline_constant",
        "baseline_nearest",
        "tuned_constrained",
    ):
        lines = (finished / "predictions" / f"{which}.jsonl").read_text()
        target = started.predictions(which)
        target.parent.mkdir(exist_ok=True)
        target.write_text(lines[: len(lines) // 2] if which.startswith("tuned") else lines)
    run = run_recipe(recipe, [], exclude_faulty=False, fresh=False)
    both = [
        json.loads((path / "scores.json").read_text())["systems"]["tuned_unconstrained"]
        for path in (finished, run.path)
    ]
    assert both[0] == both[1]


@pytest.mark.slow
def test_scoring_again_changes_nothing(finished: Path) -> None:
    before = (finished / "scores.json").read_text()
    report_run(finished)
    assert (finished / "scores.json").read_text() == before


@pytest.mark.slow
def test_held_out_samples_are_kept_in_the_run_folder(receipts: Path, tmp_path: Path) -> None:
    """Also those whose images travel inside the row, and after the data are gone."""
    recipe = read_recipe(write_yaml(tmp_path, receipts, Path("embedded")))
    run = resolve(recipe)
    splits, _ = prepare(run)
    inline = [
        replace(sample, media=tuple(Media("image", data=media.path.read_bytes()) for media in sample.media))
        for sample in splits.held_out
    ]
    folder = start_run(recipe)
    write_held_out(folder, run.task, replace(splits, held_out=tuple(inline)))
    again = read_held_out(folder)
    assert again.ids == tuple(sample.id for sample in splits.held_out)
    assert list(again.labels) == [run.task.labels(sample) for sample in splits.held_out]
    for kept, sample in zip(again.samples, splits.held_out, strict=True):
        assert kept.media[0].path.read_bytes() == sample.media[0].path.read_bytes()
        assert run.task.phrase(kept).answer == run.task.phrase(sample).answer


@pytest.mark.slow
def test_a_run_compared_with_itself_shows_no_change(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_runs(finished, finished)
    assert "+0.0 " in capsys.readouterr().out
    assert run_command(["compare", str(finished), str(finished), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["difference"]["fuzzy"]["difference"]["value"] == 0 and len(document["cost"]) == 2


@pytest.mark.slow
def test_verify_finds_every_form_equal_and_the_base_different(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_run(finished, 2)
    shown = capsys.readouterr().out
    assert shown.count("2 of 2") >= 3 and "The untouched base differs" in shown
    said = re.search(r"All (\d+) tensors of the adapter .* by ([\d.]+)%", " ".join(shown.split()))
    assert said and int(said[1]) == len(load_file(next(finished.glob("adapter/**/adapter_model.safetensors"))))
    assert 0 < float(said[2]) < 100
    assert run_command(["verify", str(finished), "--samples", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["agree"] and document["forms"]["untouched base"]["largest_difference"] > 0


@pytest.mark.slow
def test_the_exported_folder_is_scored_again_and_says_so(finished: Path, tmp_path: Path) -> None:
    merge_run(finished, tmp_path / "merged", count=3)
    card = (tmp_path / "merged" / "README.md").read_text()
    scores = json.loads((finished / "scores.json").read_text())
    gain = scores["gain"]["fuzzy"]
    floor = scores["systems"]["baseline_constant"]["metrics"]["fuzzy"]["value"]
    assert f"| fuzzy | {gain['base']['value']:.1f} | {gain['tuned']['value']:.1f} |" in card and f"{floor:.1f}" in card
    assert "On 4 held-out samples" in card and "3 of 3 replies are the same" in card
    assert "Saved as float32" in card and "DoRA" not in card and str(finished.parent) not in card
    again = load_model(tmp_path / "merged")
    assert (
        again.identity["weights_sha256"]
        != json.loads((finished / "environment.json").read_text())["model"]["weights_sha256"]
    )
    with pytest.raises(RunError, match="is not empty"):
        merge_run(finished, tmp_path / "merged")


@pytest.mark.slow
def test_the_ways_of_merging_that_are_not_exact_say_what_they_cost(finished: Path, tmp_path: Path) -> None:
    moved = {}
    for how in ("dequantised", "unquantised", "repacked"):
        merge_run(finished, tmp_path / how, count=2, how=how)
        card = (tmp_path / how / "README.md").read_text()
        assert (f"Merged as `{how}`" in card) == (how != "dequantised")
        moved[how] = float(re.search(r"by at most ([\d.e-]+)", card)[1])
    assert moved["dequantised"] < 1e-4 < 1e-3 < min(moved["unquantised"], moved["repacked"])
    with pytest.raises(RunError, match=r"unknown way to merge `repaked`.*repacked"):
        merge_run(finished, tmp_path / "x", how="repaked")


@pytest.mark.slow
def test_the_adapter_alone_opens_with_peft(finished: Path, receipts: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    export_adapter(finished, tmp_path / "adapter")
    assert "PeftModel.from_pretrained" in (tmp_path / "adapter" / "README.md").read_text()
    run = open_run(finished)
    tuned = open_tuned(resolve(run.recipe()), run.adapter)
    plain = open_for_training(resolve(run.recipe()))
    sample = Sample("a", (Media("image", next((receipts / "images").glob("*.jpg"))),), "Total?", "9.00")
    untouched = observe(plain, [sample])
    plain.model = PeftModel.from_pretrained(plain.model, tmp_path / "adapter")
    assert agreement("peft", observe(tuned, [sample]), observe(plain, [sample])).largest_difference < 1e-4
    assert agreement("base", observe(tuned, [sample]), untouched).largest_difference > 1e-4


@pytest.mark.slow
def test_dora_merged_and_rounded_warns_with_its_figure(
    receipts: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_yaml(
        tmp_path, receipts, tiny_model_folder, method={"name": "dora", "rank": 4, "parts": ["language"]}
    )
    run = run_recipe(recipe, [], exclude_faulty=False, fresh=False)
    merge_run(run.path, tmp_path / "rounded", count=2, dtype="bfloat16")
    said = " ".join(capsys.readouterr().out.split())
    assert "Saved as bfloat16" in said and "DoRA merged and rounded to bfloat16" in said
    with pytest.raises(RunError, match="4-bit base"):
        merge_run(run.path, tmp_path / "other", how="repacked")
    merge_run(run.path, tmp_path / "whole", count=2, dtype="float32")
    assert "DoRA merged" not in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_chat_answers_about_a_file_over_several_turns(
    finished: Path, receipts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = iter(["Total?", "", "And the date?", "/new", "Again?", "/quit"])
    picture = next((receipts / "images").glob("*.jpg"))
    chat(str(finished), [picture], ask=lambda prompt: next(questions))
    assert next(questions, None) is None and "/quit" in capsys.readouterr().out
    model = load_model(str(json.loads((finished / "environment.json").read_text())["model"]["path"]))
    sample = replace(opening([picture]), prompt="Total?")
    assert "".join(stream(model, sample, 20)) == generate([sample], model, max_new_tokens=20)[0]


@pytest.mark.slow
def test_another_recipe_never_writes_into_a_run(receipts: Path, tmp_path: Path) -> None:
    values = {"name": "a", "data": str(receipts), "task": {"extract": {"total": "string"}}, "output": str(tmp_path)}
    start_run(make_recipe(values))
    start_run(make_recipe(values))  # the same recipe goes on
    with pytest.raises(RunError, match="different recipe"):
        start_run(make_recipe(values | {"seed": 1}))
    with own_run(make_recipe(values | {"seed": 1}), fresh=True):
        pass
    assert (tmp_path / "a.old1" / "recipe.yaml").is_file()


@pytest.mark.slow
def test_faulty_rows_refuse_the_run_or_are_written_down(receipts: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(receipts, data)
    rows = [row for _, row in read_jsonl(data / "metadata.jsonl")]
    (data / rows[0]["file_name"]).write_bytes(b"")
    recipe = make_recipe(
        {
            "data": {"train": str(data), "held_out": {"column": "split", "value": "dev"}},
            "task": {"extract": {"total": "string"}},
        }
    )
    with pytest.raises(DataError, match="the file is empty") as caught:
        prepare(resolve(recipe))
    assert "--exclude-faulty" in str(caught.value)
    job, _ = prepare(resolve(recipe), exclude_faulty=True)
    assert [item.id for item in job.excluded] == [rows[0]["id"]]
    assert len(job.train) + len(job.dev) + len(job.held_out) == len(rows) - 1


def test_a_limit_is_a_seeded_choice_and_stands_in_the_ledger(receipts: Path) -> None:
    recipe = make_recipe(
        {
            "data": {"train": str(receipts), "held_out": {"column": "split", "value": "dev"}, "limit": 3, "dev": 0},
            "task": {"extract": {"total": "string"}},
        }
    )
    job, _ = prepare(resolve(recipe), decode=False)
    assert len(job.train) == 3 and len(job.excluded) == 5
    assert all(item.reason == "beyond data.limit=3" for item in job.excluded)


def test_init_writes_a_recipe_that_reads_back(receipts: Path, tmp_path: Path) -> None:
    out = tmp_path / "recipe.yaml"
    write_recipe(receipts, out, force=False)
    assert make_recipe(yaml.safe_load(out.read_text())).task_name == "extract"
    with pytest.raises(RecipeError, match="--force"):
        write_recipe(receipts, out, force=False)


@pytest.mark.slow
def test_methods_are_compared_and_a_failing_one_stops_nobody(
    receipts: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_yaml(tmp_path, receipts, tiny_model_folder)
    overrides = ["predict.max_new_tokens=8", "method={name: lora, init: gaussian, parts: [language]}"]
    words = "lora:rank=500,pissa,norms:learning_rate=0.003"  # a rank no layer can hold; another start; one that goes
    lora, pissa, norms = compare_methods(recipe, overrides, words, "1e")
    assert lora.score is None and "`method.rank` 500 is above the width" in lora.problem
    assert pissa.score is None and "`init`" in pissa.problem
    assert norms.score is not None and norms.trained > 0 and norms.peak_bytes > 0 and norms.rate == 0.003
    assert norms.cpu_seconds > 0
    folder = tmp_path / "runs" / "tiny-methods"
    told = json.loads((folder / "comparison.json").read_text())
    assert [one["name"] for one in told["methods"]] == words.split(",")
    assert told["untouched"]["value"] + norms.gain.value == pytest.approx(norms.score.value)
    assert set(told["baselines"]) == {"baseline_constant", "baseline_nearest"}
    assert (folder / "comparison.svg").is_file() and "failed" in capsys.readouterr().out
    run = folder / "norms-learning_rate-0.003"
    before = (run / "predictions" / "base_unconstrained.jsonl").read_text()
    assert before == (folder / "shared" / "predictions" / "base_unconstrained.jsonl").read_text()
    seen = list((run / "features").rglob("features-*.safetensors"))
    done = (folder / "shared" / "done").stat().st_mtime
    late = [file for file in seen if file.stat().st_mtime > done]
    dev = [row for _, row in read_jsonl(run / "samples.jsonl") if row["part"] == "dev"]
    assert len(seen) > len(late) and len(late) <= len(dev), "training images are seen once for all runs"
    written = {path: path.stat().st_mtime_ns for path in run.rglob("*.json")}
    assert compare_methods(recipe, overrides, words, "1e") == [lora, pissa, norms]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.json")} == written


def test_a_budget_that_cannot_be_read_is_refused_before_anything_runs(receipts: Path, tmp_path: Path) -> None:
    recipe = write_yaml(tmp_path, receipts, tmp_path / "no-model")
    with pytest.raises(RecipeError, match="not a budget"):
        compare_methods(recipe, [], "lora", "ten")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("lorra", "did you mean `lora`"),
        ("lora:rnak=4", "unknown setting `rnak` of lora — did you mean `rank`"),
        ("lora,lora", "is named twice"),
        ("lora:rank=0", "greater than or equal to 1"),
        ("prefix:parts=[vision]", "works on language, not on vision"),
        ("lora+full", "join one method and one objective"),
        ("rewards", "did you mean `reward`"),
        ("reward:group=4", "unknown setting `group` of reward — did you mean `group_size`"),
        ("prefer:steps=4", "unknown setting `steps` of prefer"),  # the budget decides
        ("lora+prefer:margin=1", "setting of `loss: simpo`"),
    ],
)
def test_words_for_methods_that_are_refused(words: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_variants(words)


def test_words_for_methods(receipts: Path, tmp_path: Path) -> None:
    """Settings of one method; the recipe's rate stays with methods that learn at the same, others take their own."""
    words = "lora:rank=8:parts=[vision, language],full,full:learning_rate=5e-4"
    found = read_variants(words)
    assert [one.folder for one in found] == ["lora-rank-8-parts-vision-language", "full", "full-learning_rate-5e-4"]
    changes = {"method": {"name": "qlora", "rank": 4, "alpha": 8}, "train": {"learning_rate": 2e-3}}
    recipe = read_recipe(write_yaml(tmp_path, receipts, tmp_path / "no-model", **changes))
    lora, full, named = (with_variant(resolve(recipe), one, read_budget("7 steps"), tmp_path).recipe for one in found)
    assert lora.method == {"name": "lora", "rank": 8, "alpha": 8, "parts": ["vision", "language"]}
    assert lora.train.learning_rate == 2e-3 and lora.train.steps == 7
    rates = [make_method(one).peak_learning_rate(one.train.learning_rate) for one in (lora, full, named)]
    assert rates == [2e-3, 2e-5, 5e-4]


def test_words_for_objectives(receipts: Path, tmp_path: Path) -> None:
    """An objective replaces the recipe's; its settings and those of the loop may be named with it."""
    words = "lora,cross_entropy,reward:group_size=4:learning_rate=1e-5,full+prefer:loss=mpo,prefer"
    changes = {"method": {"name": "qlora"}, "train": {"prefer": {"beta": 0.3}, "learning_rate": 2e-3}}
    recipe = read_recipe(write_yaml(tmp_path, receipts, tmp_path / "no-model", **changes))
    variants = [
        with_variant(resolve(recipe), item, read_budget("2 CPU minutes"), tmp_path) for item in read_variants(words)
    ]
    lora, plain, reward, full, prefer = (variant.recipe for variant in variants)
    assert lora.train.prefer == prefer.train.prefer == Prefer(beta=0.3) and plain.train.prefer is None
    assert reward.method["name"] == "qlora" and reward.train.prefer is None and reward.train.learning_rate == 1e-5
    assert reward.train.reward is not None and reward.train.reward.group_size == 4
    assert (
        full.method["name"] == "full" and full.train.prefer == Prefer(loss="mpo") and full.train.learning_rate is None
    )
    assert all(variant.recipe.train.max_cpu_minutes == 2 for variant in variants)


@pytest.mark.slow
def test_check_shows_fields_faults_spans_and_costs(
    receipts: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(receipts, data)
    recipe = write_yaml(tmp_path, data, tiny_model_folder)
    assert check_recipe(recipe, [], decode=True)
    shown = capsys.readouterr().out
    assert "What is learned" in shown and "Cost estimate" in shown and '"company"' in shown
    first = next(row for _, row in read_jsonl(data / "metadata.jsonl"))
    (data / first["file_name"]).write_bytes(b"")
    assert not check_recipe(recipe, [], decode=True)
    assert "1 to fix" in capsys.readouterr().out
    assert run_command(["check", str(recipe), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    (stage,) = document["stages"]
    assert not document["ready"] and len(stage["errors"]) == 1 and stage["cost"]["peak_bytes"] > 0
    assert check_recipe(recipe, ["data.faulty=exclude"], decode=True)
    assert "1 excluded, as the recipe asks" in capsys.readouterr().out


@pytest.mark.slow
def test_preferences_are_made_from_the_models_own_wrong_readings(
    receipts: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """As a second stage: every wrong reply of the first stage's model is a pair; the loss begins at log 2."""
    stages = [{"name": "labels"}, {"name": "preferences", "train": {"prefer": {"beta": 0.2}}}]
    task = {"extract": {"total": "amount"}}
    recipe = write_yaml(tmp_path, receipts, tiny_model_folder, stages=stages, task=task, method={"name": "lora"})
    run = run_recipe(recipe, [], exclude_faulty=False, fresh=False)
    stage = run.path / "2-preferences"
    replies = read_predictions(stage / "predictions" / "training_before.jsonl")
    assert len(replies) >= 6
    first = next(row for _, row in read_jsonl(stage / "log.jsonl") if "loss" in row)
    assert first["loss"] == pytest.approx(0.6931, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_a_stage_learns_from_the_reward(
    receipts: Path, tiny_model_folder: Path, tmp_path: Path, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constrained replies, also while frozen weights are in bf16; the log shows the reward and what it does not see."""
    monkeypatch.setattr("mllm_tailor.training.config.computes_in_bf16", lambda dtype, device: bf16)
    reward = {"group_size": 2, "max_new_tokens": 24, "temperature": 1.5}
    stages = [{"name": "labels"}, {"name": "reward", "train": {"reward": reward, "steps": 2, "batch_size": 2}}]
    task = {"extract": {"total": "amount"}}
    recipe = write_yaml(tmp_path, receipts, tiny_model_folder, stages=stages, task=task, method={"name": "lora"})
    run = run_recipe(recipe, [], exclude_faulty=False, fresh=False)
    rows = [row for _, row in read_jsonl(run.path / "2-reward" / "log.jsonl") if "loss" in row]
    assert len(rows) == 2
    assert all(0 <= row["reward"] <= 1 and row["watch/unreadable"] == 0 for row in rows)
    assert "The reward, and what it does not see" in (run.path / "2-reward" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_mezo_on_the_tasks_own_metric(receipts: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Its loss is 1 - the metric of the model's replies to the step's samples."""
    method = {"name": "mezo", "parts": ["projector"], "objective": "metric"}
    recipe = write_yaml(tmp_path, receipts, tiny_model_folder, task={"extract": {"total": "amount"}}, method=method)
    run = run_recipe(
        recipe, ["data.transcription_share=0", "train.learning_rate=1e-4"], exclude_faulty=False, fresh=False
    )
    rows = [row for _, row in read_jsonl(run.path / "log.jsonl") if "loss" in row]
    assert len(rows) == 2
    assert all(0 <= row["loss"] <= 1 for row in rows)
