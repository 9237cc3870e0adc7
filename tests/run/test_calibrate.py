"""The calibration of a run: fitted on the dev split, stored, checked on the held-out split, used by predict."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from mllm_tailor.commands.predict import open_predictor, predict_paths
from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import read_json, read_jsonl
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run.calibrate import (
    RunCalibration,
    check_confidence,
    cross_calibrated,
    fit_calibration,
    outlook,
    read_calibration,
    why_not,
    write_calibration,
)
from mllm_tailor.run.data_record import HeldOut
from mllm_tailor.run.new_files import predictor_of_run
from mllm_tailor.run.resolve import ResolvedRun, resolve_saved
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.synthetic.folder import draw_folder


@pytest.fixture(scope="module")
def run() -> ResolvedRun:
    values = {
        "model": {"path": "tiny", "device": "cpu"},
        "data": "unused",
        "task": {"extract": {"company": "string", "total": "amount"}},
        "method": "lora",
        "accept": {"right": 0.9},
    }
    return resolve_saved(make_recipe(values))


def drawn(count: int, seed: int) -> tuple[HeldOut, list[Prediction]]:
    """Labels and replies of known quality: totals are mostly right, companies rarely."""
    random = np.random.default_rng(seed)
    samples = tuple(Sample(f"s{seed}-{index}", group=f"g{index // 2}") for index in range(count))
    labels = tuple({"company": "ACME", "total": "9.00"} for _ in samples)
    replies = []
    for sample in samples:
        raw, fields = {}, {}
        for name, true, level in (("company", "ACME", -0.5), ("total", "9.00", 3.0)):
            odds = random.normal(level, 2.0)
            right = random.random() < 1 / (1 + np.exp(-odds))
            raw[name] = {"mean": float(1 / (1 + np.exp(-odds / 2 - 2))), "least": float(1 / (1 + np.exp(-odds / 2)))}
            fields[name] = true if right else "wrong"
        replies.append(Prediction(sample.id, json.dumps(fields), fields, raw=raw))
    return HeldOut(samples, labels, ("",) * count), replies


def test_fitted_on_dev_and_checked_on_others(run: ResolvedRun, tmp_path: Path) -> None:
    calibration = fit_calibration(run, *drawn(200, 0), "dev")
    assert (calibration.samples, calibration.values, calibration.units) == (200, 400, 100)
    assert calibration.promise is not None and calibration.promise.threshold is not None
    labelled, replies = drawn(300, 1)
    told = [calibration.apply(reply) for reply in replies]
    check = check_confidence(run, labelled, told, {"seen": range(100), "unseen": range(100, 300)})
    assert check is not None and list(check.parts) == ["all", "seen", "unseen", "field company", "field total"]
    whole = check.parts["all"]
    assert whole.ece < 0.06 and whole.accepted is not None
    assert whole.accepted.count > 50 and whole.accepted.wrong / whole.accepted.count < 0.1
    assert check.parts["seen"].count + check.parts["unseen"].count == whole.count == 600
    folder = RunFolder(tmp_path)
    write_calibration(folder, calibration)
    again = read_calibration(folder)
    assert [again.apply(reply) for reply in replies] == told
    assert again.row() == calibration.row()


def test_without_a_promise_nothing_is_accepted_or_refused(run: ResolvedRun) -> None:
    plain = ResolvedRun(**{**vars(run), "recipe": run.recipe.model_copy(update={"accept": None})})
    labelled, replies = drawn(60, 2)
    told = fit_calibration(plain, labelled, replies, "dev").apply(replies[0])
    assert told.confidence and told.accept is None and "accept" not in told.row()
    uncalibrated = RunCalibration(reason="none").apply(replies[0])
    row = uncalibrated.row()
    assert row["calibrated"] is False and not Prediction.from_row(row).confidence
    assert row["confidence"] == {name: round(scores["mean"], 4) for name, scores in row["raw"].items()}


@pytest.mark.slow
def test_folds_never_judge_a_sample_by_its_own_label(run: ResolvedRun) -> None:
    labelled, replies = drawn(120, 3)
    told = cross_calibrated(run, labelled, replies)
    assert all(reply.confidence and reply.accept is not None for reply in told)
    turned = [dict(label) for label in labelled.labels]
    turned[0], turned[1] = ({"company": "other", "total": "1.00"} for _ in range(2))  # the whole group
    again = cross_calibrated(run, HeldOut(labelled.samples, tuple(turned), labelled.questions), replies)
    assert again[0].confidence == told[0].confidence and again[1].confidence == told[1].confidence
    assert any(one.confidence != other.confidence for one, other in zip(told, again, strict=True))


def test_why_there_is_none(run: ResolvedRun, tmp_path: Path) -> None:
    assert "7 samples, and it takes 15 (30 values)" in why_not(run, 7) and not why_not(run, 15)
    assert "10 values" in fit_calibration(run, *drawn(5, 4), "dev").reason
    folder = RunFolder(tmp_path)
    assert "tailor report" in read_calibration(folder).reason
    folder.calibration.write_text('{"format": 1, "calibration": 7}')
    with pytest.raises(RunError, match="not a calibration"):
        read_calibration(folder)


def test_what_a_dev_split_can_show_is_known_before_the_run(run: ResolvedRun) -> None:
    assert "will not be calibrated" in outlook(run, [Sample("a")] * 7)
    few, many = ([Sample(str(index), group=f"g{index % 9}") for index in range(count)] for count in (15, 40))
    assert "9 groups, and it takes 10" in outlook(run, few)  # 30 values; 29 can show 90 % in more groups
    assert "9 groups, and it takes 10" in outlook(run, many)
    assert outlook(run, [Sample(str(index)) for index in range(40)]) == ""


@pytest.mark.slow
def test_a_run_calibrates_and_predict_says_the_same(
    tmp_path: Path, tiny_model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "receipts"
    draw_folder(data, 20, 4, seed=5)
    values = {
        "name": "tiny",
        "model": {"path": str(tiny_model_folder), "device": "cpu", "dtype": "float32"},
        "data": {"train": str(data), "held_out": {"column": "split", "value": "dev"}, "dev": 0.45},
        "task": {"extract": {"company": "string", "date": "date", "total": "amount", "address": "string"}},
        "method": "lora",
        "train": {"steps": 1, "batch_size": 2},
        "predict": {"max_new_tokens": 40},
        "accept": {"right": 0.9},
        "output": str(tmp_path / "runs"),
    }
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values))
    folder = run_recipe(recipe, [], exclude_faulty=True, fresh=False)
    stored = read_json(folder.calibration)
    assert stored["source"] == "dev" and stored["values"] >= 30 and stored["promise"]["threshold"] is None
    assert {"calibration.json", "dev.jsonl", "predictions/tuned_dev.jsonl"} <= read_json(folder.path / "manifest.json")[
        "files"
    ].keys()
    rows = {row["id"]: row for _, row in read_jsonl(folder.reply_rows)}
    assert all(row["confidence"].keys() == row["accept"].keys() for row in rows.values() if row["raw"])
    assert read_json(folder.scores)["confidence"]["all"]["count"] > 0
    page = re.sub(r"\s+", " ", folder.report.read_text())
    assert "Which values need no eye" in page and "Every value needs an eye" in page

    out = tmp_path / "out.jsonl"
    files = [data / "images" / f"{name}.jpg" for name in rows]
    predict_paths(open_predictor(folder.path), files, out)
    for _, row in read_jsonl(out):
        assert row["confidence"] == pytest.approx(rows[row["id"]]["confidence"], abs=1e-3)
        assert row["accept"] == rows[row["id"]]["accept"]
    with caplog.at_level(logging.WARNING):
        base = predictor_of_run(folder.path, base=True)
    assert base.calibration.reason == "this is the untuned model"
    assert "unconstrained" in predictor_of_run(folder.path, unconstrained=True).calibration.reason
    folder.calibration.write_text("{}")
    with pytest.raises(RunError, match=r"calibration\.json: damaged"):
        predictor_of_run(folder.path)
