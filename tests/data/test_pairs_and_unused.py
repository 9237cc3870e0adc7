"""Preference pairs in every form they come in, and what of a data set nothing reads: named, never passed over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.label_files import write

from mllm_tailor.core.errors import DataError
from mllm_tailor.data import DataIssue, check_declared, read_samples, validate
from mllm_tailor.data.keys import HARMLESS_KEYS
from mllm_tailor.run.objective_inputs import rejected_replies
from mllm_tailor.tasks import open_task

PAGE = Path(__file__).resolve().parents[2] / "docs" / "row-keys.md"
ASKED = {"role": "user", "content": "Total?"}
SAID = {"role": "assistant", "content": "9.00"}
WRONG = {"role": "assistant", "content": "900"}
PAIRS: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": [ASKED], "chosen": [SAID], "rejected": [WRONG]},
    "TRL, without a prompt": {"chosen": [ASKED, SAID], "rejected": [ASKED, WRONG]},
    "RLAIF-V": {"question": "Total?", "chosen": "9.00", "rejected": "900"},
    "ms-swift": {"messages": [ASKED, SAID], "rejected_response": "900"},
    "ms-swift, messages": {"messages": [ASKED, SAID], "rejected_messages": [ASKED, WRONG]},
    "ms-swift, query": {"query": "Total?", "response": "9.00", "rejected_response": "900"},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "Total?"}],
        "chosen": {"from": "gpt", "value": "9.00"},
        "rejected": {"from": "gpt", "value": "900"},
    },
}


def read(folder: Path, *rows: dict[str, Any], **files: Any) -> tuple[list[Any], str]:
    issues: list[DataIssue] = []
    for number, row in enumerate(rows):
        row.setdefault("id", f"row-{number}")
    write(folder, {"rows.jsonl": list(rows), **files})
    try:
        samples = list(read_samples(folder, on_issue=issues.append).samples)
    except DataError:
        samples = []
    return samples, "\n".join(map(str, issues))


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_read_in_every_form(name: str, tmp_path: Path) -> None:
    (sample,), said = read(tmp_path, dict(PAIRS[name]))
    assert (sample.id, sample.prompt, sample.answer) == ("row-0", "Total?", "9.00") and not said
    assert sample.extra["rejected"] == "900"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Total?", "chosen": "9", "rejected": ASKED}, "role 'user'"),
        ({"chosen": [ASKED, SAID], "rejected": [{**ASKED, "content": "Date?"}, WRONG]}, "another conversation"),
        ({"messages": [ASKED, SAID], "chosen": "9.00", "rejected": "900"}, "`chosen`"),
        ({"prompt": "Total?", "completion": "900", "label": False}, "undesired"),
        ({"messages": [ASKED, {**SAID, "content": ["9", {"type": "image"}]}], "rejected": {"content": 3}}, "no text"),
    ],
)
def test_a_pair_that_cannot_be_read_is_named(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    samples, said = read(tmp_path, row)
    assert not samples and "rows.jsonl:1" in said and words in said


def test_rejected_replies_of_rows_are_those_of_the_objective(tmp_path: Path) -> None:
    """No reply is generated where every row states one; one that equals the label makes no pair."""
    samples, _ = read(tmp_path, dict(PAIRS["TRL"]), {"prompt": "Date?", "chosen": "May", "rejected": "May "})
    phrased = tuple(map(open_task("answer").phrase, samples))
    splits: Any = SimpleNamespace(train=samples, phrased=phrased, mixed_samples=())
    unused: Any = None
    assert rejected_replies(unused, unused, splits, unused, unused) == {"row-0": "900"}


def test_what_the_task_does_not_use_is_named_with_the_first_row(tmp_path: Path) -> None:
    menu = [{"name": "tea", "price": "2", "size": "L"}]
    rows = [
        {"file_name": "a.png", "ground_truth": {"menu": menu, "shop": "A", "note": "torn"}, "source": "scan"},
        {"file_name": "b.png", "ground_truth": {"menu": menu, "shop": "B"}, "source": "scan"},
    ]
    samples, said = read(tmp_path, *rows, **{"a.png": b"a", "b.png": b"b", "c.png": b"c", "old/d.txt": b"d"})
    assert (
        "1 .png files are shown by no sample, such as c.png" in said and "1 .txt files are read for no sample" in said
    )
    task = open_task("extract", {"menu": {"items": {"name": "string", "price": "string"}}})
    named = [issue for issue in validate(samples, (), task, decode=False).faults if "neither asked" in issue.problem]
    text = "\n".join(map(str, named))
    assert "`source`" in text and "`shop`" in text and "`menu.size`" in text
    assert any("`note`" in issue.problem and "1 of 2" in issue.problem for issue in named)
    assert any(issue.source.endswith("rows.jsonl:1") for issue in named)
    with_split = validate(samples, (), task, decode=False, used=["source"]).faults
    assert not any("`source`" in issue.problem for issue in with_split)


def test_a_field_that_no_sample_has_is_refused(tmp_path: Path) -> None:
    samples, _ = read(tmp_path, {"file_name": "a.png", "fields": {"total": "9", "menu": [{"name": "tea"}]}})
    check_declared(samples, open_task("extract", {"total": "string", "menu": {"items": {"name": "string"}}}))
    for fields, name in (({"totel": "string"}, "totel"), ({"menu": {"items": {"price": "string"}}}, "menu.price")):
        with pytest.raises(DataError, match=f"no sample has the field `{name}`"):
            check_declared(samples, open_task("extract", fields))


def test_markers_in_a_question_are_the_places_of_its_files(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "question": "<image>\nWhat is it?", "answer": "a cup"},
        {"images": ["a.png", "b.png"], "question": "Is <image> like <image>?", "answer": "no"},
        {"image": "a.png", "question": "Are <image> and <image> alike?", "answer": "no"},
    ]
    samples, _ = read(tmp_path, *rows, **{"a.png": b"a", "b.png": b"b"})
    assert [sample.prompt for sample in samples[:2]] == ["What is it?", "Is  like ?"]
    assert [sample.positions for sample in samples] == [(), ((0, 3), (0, 9)), ()]
    assert "<image>" in samples[2].prompt  # one file for two markers: a check names the row


def test_every_harmless_key_is_documented() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not [key for key in HARMLESS_KEYS if f"`{key}`" not in page]
