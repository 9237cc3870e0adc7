"""`tailor score`: predictions of any origin, as JSONL or CSV, against labels."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mllm_tailor.cli.app import app
from mllm_tailor.core.errors import DataError
from mllm_tailor.scoring.referee import match_predictions, read_labels

LABELS = [
    {"id": f"r{i}", "group": f"g{i % 5}", "fields": {"company": f"SHOP {i}", "total": f"{i}.00"}} for i in range(20)
]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(*words: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["score", *map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.slow
def test_every_form_of_the_same_predictions_scores_the_same(tmp_path: Path) -> None:
    said = [{"company": row["fields"]["company"], "total": f"RM{index}.00"} for index, row in enumerate(LABELS)]
    ids = [row["id"] for row in LABELS]
    forms = [
        jsonl(tmp_path / "ours.jsonl", [  # as tailor predict writes them
            {"id": i, "fields": f, "confidence": {}} for i, f in zip(ids, said, strict=True)]),
        jsonl(tmp_path / "flat.jsonl", [{"id": i, **f} for i, f in zip(ids, said, strict=True)]),
        table(tmp_path / "flat.csv", [{"id": i, **f} for i, f in zip(ids, said, strict=True)]),
        table(tmp_path / "object.csv", [{"id": i, "fields": json.dumps(f)} for i, f in zip(ids, said, strict=True)]),
        jsonl(tmp_path / "raw.jsonl", [
            {"file": f"scans/{i}.jpg", "response": f"Sure: {json.dumps(f)}"} for i, f in zip(ids, said, strict=True)
        ]),
        jsonl(tmp_path / "shuffled.jsonl", [{"id": i, **f} for i, f in zip(ids, said, strict=True)][::-1]),
    ]  # fmt: skip
    labels = jsonl(tmp_path / "labels.jsonl", LABELS)
    flat = table(tmp_path / "labels.csv", [{"id": row["id"], "group": row["group"], **row["fields"]} for row in LABELS])
    for truth in (labels, flat):
        result = run(truth, *forms, "--kind", "total=amount")
        values = [
            {metric: row["value"] for metric, row in system["metrics"].items()} for system in result["systems"].values()
        ]
        assert len(values) == 6 and all(value == values[0] for value in values)
        assert values[0]["normalised_exact"] == 100 and values[0]["exact"] == 50
        assert {each["exact"]["units"] for each in result["intervals"].values()} == {5}


def test_others_are_compared_with_the_first(tmp_path: Path) -> None:
    labels = jsonl(tmp_path / "labels.jsonl", LABELS)
    good = jsonl(tmp_path / "good.jsonl", LABELS)
    bad = jsonl(tmp_path / "bad.jsonl", [row | {"fields": {"company": "?", "total": "?"}} for row in LABELS])
    result = run(labels, bad, good, "-m", "exact")
    difference = result["difference"]["good.jsonl"]["exact"]
    assert difference["difference"]["value"] == 100 and difference["fixed"] == 20
    text = CliRunner().invoke(app, ["score", str(labels), str(bad), str(good)]).stdout
    assert "good.jsonl against bad.jsonl" in text and "100.0" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_takes_no_part_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = jsonl(tmp_path / "labels.jsonl", LABELS[:4])
    said = [{"id": "r0", **LABELS[0]["fields"], "mood": "good"}, {"id": "r9", "company": "x"}]
    with caplog.at_level(logging.WARNING, "mllm_tailor"):
        result = run(labels, jsonl(tmp_path / "few.jsonl", said), "-m", "exact")
    assert result["systems"]["few.jsonl"]["metrics"]["exact"]["value"] == 25
    text = caplog.text
    assert "samples without a prediction, which count as unanswered (3): r1, r2, r3" in text
    assert "r9" in text and "mood" in text


def test_line_items_are_scored_without_asking(tmp_path: Path) -> None:
    items = [{"name": "tea", "price": "2.00"}, {"name": "bun", "price": "1.00"}]
    labels = jsonl(tmp_path / "labels.jsonl", [{"id": str(i), "items": items} for i in range(4)])
    said = table(tmp_path / "said.csv", [{"id": str(i), "items": json.dumps(items[::-1])} for i in range(4)])
    shown = CliRunner().invoke(app, ["score", str(labels), str(said)], catch_exceptions=False).output
    assert "items.price" in shown and "precision" in shown
    metrics = run(labels, said)["systems"]["said.csv"]["metrics"]
    assert metrics["row_f1"]["value"] == 100 and set(metrics["cell_f1"]["by_field"]) == {
        "items", "items.name", "items.price"
    }  # fmt: skip


def test_one_answer_a_sample(tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", [{"id": i, "answer": a, "doctor": i % 3} for i, a in enumerate("abcabc")])
    said = jsonl(tmp_path / "said.jsonl", [{"id": str(i), "prediction": a} for i, a in enumerate("abcaba")])
    result = run(labels, said, "-m", "exact", "--group-by", "doctor")
    assert result["systems"]["said.jsonl"]["metrics"]["exact"]["value"] == pytest.approx(100 * 5 / 6)
    assert result["intervals"]["said.jsonl"]["exact"]["units"] == 3


@pytest.mark.parametrize(
    ("labels", "said", "message"),
    [
        ([{"id": "a", "x": "1"}], [], "no rows"),
        ([{"x": "1"}], [{"id": "a"}], "no column names the sample"),
        ([{"id": "a", "x": "1"}, {"id": "a", "x": "2"}], [{"id": "a"}], "occurs 2 times"),
        ([{"id": "a"}], [{"id": "a"}], "no labels"),
        ([{"id": "a", "x": "1"}], [{"id": "b", "x": "1"}], "is one of the labels'"),
        (
            [{"id": "q", "x": "1"}],
            [{"id": "a/q.jpg", "x": "1"}, {"id": "b/q.jpg", "x": "1"}],
            "several files are called `q`",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(labels: list[Any], said: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        match_predictions(read_labels(labels, "labels.jsonl"), said, "said.jsonl")


def test_files_of_other_forms_are_refused(tmp_path: Path) -> None:
    labels = jsonl(tmp_path / "labels.jsonl", LABELS)
    (tmp_path / "said.xlsx").write_bytes(b"PK")
    for words, message in (
        ((labels, tmp_path / "said.xlsx"), "neither JSONL, JSON nor CSV"),
        ((labels, tmp_path / "none.jsonl"), "no such file"),
        ((labels, labels, "--kind", "total"), "total=amount"),
        ((labels, labels, "-m", "fuzy"), "did you mean `fuzzy`"),
        ((labels, labels, "--group-by", "grup"), "no column `grup`"),
    ):
        result = CliRunner().invoke(app, ["score", *map(str, words)])
        assert result.exit_code != 0 and message in str(result.exception), (words, result.exception)


ANSWERS = [{"company": f"SHOP {i}", "total": f"{i}.00"} for i in range(20)]
FORMS: dict[str, list[Any]] = {
    "other spellings": [
        {"Document": f"a/r{i}.jpg", "Company": a["company"], "TOTAL": a["total"]} for i, a in enumerate(ANSWERS)
    ],
    "a result in each row": [{"image_path": f"r{i}.png", "result": a} for i, a in enumerate(ANSWERS)],
    "values with confidence": [
        {"id": f"r{i}", "fields": {k: {"value": v, "confidence": 0.9} for k, v in a.items()}}
        for i, a in enumerate(ANSWERS)
    ],
    "named values": [
        {"file": f"r{i}", "entities": [{"type": k, "mention_text": v, "confidence": 0.9} for k, v in a.items()]}
        for i, a in enumerate(ANSWERS)
    ],
    "chat completions": [
        {"custom_id": f"r{i}", "response": {"body": {"choices": [{"message": {"content": json.dumps(a)}}]}}}
        for i, a in enumerate(ANSWERS)
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_other_tools(form: str) -> None:
    labelled = read_labels(LABELS, "labels.jsonl")
    matched = match_predictions(labelled, FORMS[form], "said.jsonl")
    assert [dict(prediction.fields) for prediction in matched.predictions] == ANSWERS
    assert not matched.unused and not matched.missing
    if "confidence" in json.dumps(FORMS[form]):
        assert matched.predictions[0].confidence == {"company": 0.9, "total": 0.9}


def test_the_right_answers_beside_a_reply_are_never_scored_as_the_reply() -> None:
    """ms-swift, LLaMA-Factory and others copy the labels into the rows of their predictions."""
    labelled = read_labels(LABELS, "labels.jsonl")
    for truth in ("labels", "label", "ground_truth", "target"):
        rows = [
            {"id": f"r{i}", truth: json.dumps(answer), "response": json.dumps({"company": "no", "total": "no"})}
            for i, answer in enumerate(ANSWERS)
        ]
        matched = match_predictions(labelled, rows, "said.jsonl")
        assert {prediction.fields["total"] for prediction in matched.predictions} == {"no"}, truth


def test_columns_are_named_and_rows_matched_by_their_order(tmp_path: Path) -> None:
    labels = jsonl(tmp_path / "labels.jsonl", LABELS)
    said = table(tmp_path / "said.csv", [{"Shop": a["company"], "Grand Total": a["total"]} for a in ANSWERS])
    result = run(labels, said, "--in-order", "--column", "company=Shop", "--column", "total=Grand Total", "-m", "exact")
    assert result["systems"]["said.csv"]["metrics"]["exact"]["value"] == 100
    labelled = read_labels(LABELS, "labels.jsonl")
    for rows, options, message in (
        (FORMS["named values"], {"columns": {"company": "Shop"}}, "no column `Shop`"),
        (FORMS["named values"], {"columns": {"shop": "file"}}, "no field `shop`"),
        (FORMS["named values"][1:], {"in_order": True}, "19 rows for 20 labels"),
        ([{"id": "r0", "Amount": "1"}], {}, "its columns are id, Amount .*--column"),
        ([{"Amount": "1"}], {}, "its columns are Amount.*--in-order"),
    ):
        with pytest.raises(DataError, match=message):
            match_predictions(labelled, rows, "said.jsonl", **options)


def test_json_files_of_rows_and_of_files(tmp_path: Path) -> None:
    labels = jsonl(tmp_path / "labels.jsonl", LABELS)
    (tmp_path / "list.json").write_text(json.dumps(FORMS["a result in each row"]), encoding="utf-8")
    (tmp_path / "files.json").write_text(json.dumps({f"r{i}.jpg": a for i, a in enumerate(ANSWERS)}), encoding="utf-8")
    result = run(labels, tmp_path / "list.json", tmp_path / "files.json", "-m", "exact")
    assert {system["metrics"]["exact"]["value"] for system in result["systems"].values()} == {100}
