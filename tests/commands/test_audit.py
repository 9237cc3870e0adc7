"""`tailor audit` as a user meets it: the list, the page, decisions and what a run makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from mllm_tailor.cli.app import app, run_command
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.data.split import make_folds
from mllm_tailor.models import Length
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.cross_fit import CrossFit, cross_fit
from mllm_tailor.run.dataset import prepare, read_splits
from mllm_tailor.run.ledger import write_ledger
from mllm_tailor.run.resolve import resolve

ATTACK = "</textarea><script>alert(1)</script>"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Thirty receipts of three shops; one total is missing, one address is misspelt, one holds an attack."""
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for number in range(30):
        shop = number % 3
        Image.new("RGB", (40, 60), (200 - number, 250, 250)).save(data / f"{number}.png")
        row = {"file_name": f"{number}.png", "company": f"SHOP NUMBER {shop}", "total": f"{number}.50"}
        rows.append({**row, "address": f"{shop} LONG STREET, 12345 SPRINGFIELD"})
    rows[4]["total"] = ""
    rows[6]["address"] = "0 LONG STREET, 12346 SPRINGFIELD"
    rows[8]["address"] = ATTACK
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: shops\noutput: {tmp_path}/runs\nmodel: {{path: tiny, dtype: float32}}\n"
        f"data: {{train: {data}, held_out: {{fraction: 0.2, group_by: company}}, dev: 0}}\n"
        "task: {extract: {company: string, address: string, total: string}}\n"
        "method: {name: lora, rank: 2, parts: [language]}\ntrain: {epochs: 0.3, batch_size: 4, processes: 1}\n"
        "predict: {max_new_tokens: 4}\n",
        encoding="utf-8",
    )
    return path


def tailor(*words: object) -> Any:
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


def run_json(*words: object) -> dict[str, Any]:
    result = tailor(*words, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.slow
def test_the_list_and_its_page(recipe: Path) -> None:
    result = run_json("audit", recipe)
    found = {(row["id"], row["field"]): row for row in result["suspects"]}
    assert result["values"] == 90
    assert {("4", "total"), ("6", "address"), ("8", "address")} <= found.keys()
    assert found[("6", "address")]["suggestion"] == "0 LONG STREET, 12345 SPRINGFIELD"
    assert [row for _, row in read_jsonl(Path(result["rows"]))] == result["suspects"]
    html = Path(result["page"]).read_text(encoding="utf-8")
    assert ATTACK not in html and "&lt;/textarea&gt;&lt;script&gt;" in html
    assert html.count("<script>") == 1 and "default-src 'none'" in html and "script-src 'sha256-" in html
    assert "http" not in html.replace("http-equiv", "")


@pytest.mark.slow
def test_decisions_are_kept_and_a_run_takes_them_up(recipe: Path, tmp_path: Path) -> None:
    decisions = tmp_path / "decisions.jsonl"
    rows = [
        {"id": "6", "field": "address", "decision": "fix", "label": "0 LONG STREET, 12346 SPRINGFIELD", "value": "X"},
        {"id": "4", "field": "total", "decision": "keep", "label": ""},
    ]
    decisions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before = (tmp_path / "data" / "metadata.jsonl").read_bytes()
    result = run_json("audit", recipe, "--apply", decisions)
    assert result["fixed"] == [
        {"id": "6", "field": "address", "label": "0 LONG STREET, 12346 SPRINGFIELD", "value": "X"}
    ]
    assert (tmp_path / "data" / "metadata.jsonl").read_bytes() == before
    left = {(row["id"], row["field"]) for row in run_json("audit", recipe)["suspects"]}
    assert not left & {("6", "address"), ("4", "total")}

    run = resolve(read_recipe(recipe, [f"data.corrections={result['decisions']}"]))
    splits, _ = prepare(run, decode=False, exclude_faulty=True)
    labels = {sample.id: run.task.labels(sample) for sample in (*splits.train, *splits.held_out)}
    assert labels["6"]["address"] == "X"
    write_ledger(tmp_path / "ledger.jsonl", run.task, splits, dict.fromkeys(labels, Length(9, 1, 1, 1, 1)))
    ledger = {row["id"]: row for _, row in read_jsonl(tmp_path / "ledger.jsonl")}
    assert ledger["6"]["corrected"] == {"address": {"label": "0 LONG STREET, 12346 SPRINGFIELD", "value": "X"}}
    assert "corrected" not in ledger["4"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "66", "field": "total", "decision": "keep"}, "66: no such sample"),
        ({"id": "6", "field": "totl", "decision": "keep"}, "did you mean `total`"),
        ({"id": "6", "field": "total", "decision": "fix", "label": "1", "value": "2"}, "decide again"),
        ({"id": "6", "field": "total", "decision": "fix", "label": "6.50"}, "without a `value`"),
        ({"id": "6", "field": "total", "decision": "maybe"}, "decision"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(
    recipe: Path, tmp_path: Path, row: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    decisions = tmp_path / "decisions.jsonl"
    decisions.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert run_command(["audit", str(recipe), "--apply", str(decisions)]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "runs" / "shops-audit" / "decisions.jsonl").exists()


def test_folds_hold_every_sample_once_and_groups_whole(recipe: Path) -> None:
    run = resolve(read_recipe(recipe))
    _, train, held_out, _ = read_splits(run, [])
    samples = [*train, *held_out]
    folds = make_folds(samples, 3, "0:fold")
    assert sorted(name for fold in folds for name in fold) == sorted(map(str, range(30)))
    assert [len({sample.group for sample in samples if sample.id in fold}) for fold in folds] == [1, 1, 1]


@pytest.mark.slow
def test_cross_fitted_readings_are_of_models_that_did_not_learn_the_fold(recipe: Path, tmp_path: Path) -> None:
    run = resolve(read_recipe(recipe))
    layout, train, held_out, _ = read_splits(run, [])
    samples = [*train, *held_out]
    first = cross_fit(run, samples, layout, tmp_path / "folds", CrossFit(2, 60))
    assert sorted(prediction.id for prediction in first) == sorted(sample.id for sample in samples)
    for number, fold in enumerate(make_folds(samples, 2, "0:fold"), 1):
        rows = [row for _, row in read_jsonl(tmp_path / "folds" / f"fold-{number}" / "data_fingerprints.jsonl")]
        learned = {row["id"] for row in rows if row.get("split") == "train"}
        assert not learned & fold
    assert cross_fit(run, samples, layout, tmp_path / "folds", CrossFit(2, 60)) == first  # nothing is trained again
