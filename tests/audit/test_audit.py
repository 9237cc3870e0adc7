"""Every check of the audit finds the fault it is for, and is silent where labels are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mllm_tailor.audit import LabelledPage, Suspect, audit_labels
from mllm_tailor.audit.readings import rising_means
from mllm_tailor.core.sample import Prediction

KINDS = {"company": "string", "address": "string", "date": "date", "total": "amount"}
ADDRESSES = {
    "NORTH STAR TRADING": "12 HARBOUR ROAD, 50480 PORT CITY",
    "OLD MILL BAKERY": "7 MILL LANE, 81100 RIVERTON",
    "BLUE DOOR BOOKS": "99 HIGH STREET, 43300 HILLTOWN",
}


def pages(count: int = 30, *, text: bool = False) -> list[LabelledPage]:
    """Right labels of three shops, with totals and dates that differ."""
    result = []
    for number in range(count):
        company = list(ADDRESSES)[number % 3]
        labels = {
            "company": company,
            "address": ADDRESSES[company],
            "date": f"{number % 28 + 1:02d}/03/2018",
            "total": f"{number + 3}.{number:02d}",
        }
        printed = f"{company}\n{labels['address']}\nDATE {labels['date']}\nTOTAL RM {labels['total']}\nCASH 100.00"
        result.append(LabelledPage(f"r{number}", labels, f"labels:{number}", text=printed if text else None))
    return result


def spoiled(items: list[LabelledPage], index: int, **labels: object) -> list[LabelledPage]:
    page = items[index]
    items[index] = LabelledPage(
        page.id, {**page.labels, **labels}, page.source, page.group, page.question, page.text, page.contents, page.looks
    )
    return items


def first(items: list[LabelledPage], **readings: list[Prediction]) -> Suspect:
    return audit_labels(items, KINDS, readings)[0]


def test_nothing_is_suspicious_in_right_labels() -> None:
    assert audit_labels(pages(text=True), KINDS) == []
    assert audit_labels(pages(), KINDS) == []


@pytest.mark.parametrize(
    ("field", "value", "check", "suggestion"),
    [
        ("address", "12 HARBOUR ROAD, 50490 PORT CITY", "agreement", "12 HARBOUR ROAD, 50480 PORT CITY"),
        ("company", "NORTH STAR TRADNG", "agreement", "NORTH STAR TRADING"),
        ("total", "", "empty", ""),
        ("date", "n/a", "format", ""),
        ("date", "01/03/2081", "far off", ""),
        ("total", "90000.00", "far off", ""),
    ],
)
def test_labels_alone_tell(field: str, value: str, check: str, suggestion: str) -> None:
    suspect = first(spoiled(pages(40), 0, **{field: value}))
    assert (suspect.id, suspect.field, suspect.label) == ("r0", field, value)
    assert suspect.evidence[0].check == check
    assert suspect.suggestion == suggestion


def test_a_value_that_the_page_does_not_hold_is_found_with_the_nearest_one() -> None:
    suspect = first(spoiled(pages(text=True), 4, total="8.04"))
    assert (suspect.id, suspect.field) == ("r4", "total")
    assert suspect.evidence[0].check == "page text"
    misread = first(spoiled(pages(text=True), 5, company="BLUE DOOR BOOKZ"))
    assert misread.suggestion == "BLUE DOOR BOOKS"


@pytest.mark.parametrize("value", ["RM 7.04", "7.04 ", "$7.04"])
def test_other_forms_of_a_printed_amount_are_no_fault(value: str) -> None:
    assert "page text" not in {
        item.check
        for suspect in audit_labels(spoiled(pages(text=True), 4, total=value), KINDS)
        for item in suspect.evidence
    }


def test_a_field_that_is_never_printed_as_labelled_says_little() -> None:
    """Labels that were normalised are absent from every page, so absence is no evidence."""
    items = [
        LabelledPage(page.id, {"code": f"X-{index:04d}-{index * 7:05d}"}, text="nothing of the kind")
        for index, page in enumerate(pages(40))
    ]
    assert all(suspect.suspicion < 0.1 for suspect in audit_labels(items, {}))


def test_copies_with_different_labels() -> None:
    items = pages()
    items.append(LabelledPage("copy", {**items[3].labels, "total": "61.03"}, contents=("abc",)))
    items[3] = LabelledPage("r3", items[3].labels, contents=("abc",))
    found = {(suspect.id, suspect.field): suspect for suspect in audit_labels(items, KINDS)}
    assert {("r3", "total"), ("copy", "total")} <= found.keys()
    assert found[("copy", "total")].suggestion == "6.03"
    # two questions about one file may have different answers
    asked = [LabelledPage(str(i), {"answer": str(i)}, question=f"what is {i}?", contents=("abc",)) for i in range(3)]
    assert audit_labels(asked, {}) == []


def test_sums_that_hold_elsewhere() -> None:
    def bill(number: int, total: float) -> LabelledPage:
        rows = [{"name": f"item {n}", "count": "2", "price": f"{n + 1}.50", "sum": f"{2 * n + 3}.00"} for n in range(3)]
        labels = {"net": f"{number}.10", "tax": "1.25", "total": f"{total:.2f}", "items": rows, "due": "15.00"}
        return LabelledPage(str(number), labels)

    items = [bill(number, number + 1.35) for number in range(20)]
    items[7] = bill(7, 9.35)
    wrong = audit_labels(items, {"total": "amount"})
    assert [(suspect.id, suspect.suggestion) for suspect in wrong if suspect.field == "total"] == [("7", "8.35")]
    items[8].labels["items"][1]["sum"] = "6.00"
    assert {suspect.field for suspect in audit_labels(items, {}) if suspect.id == "8"} >= {"items"}


def test_confident_readings_that_contradict_a_label() -> None:
    items = spoiled(pages(60), 10, total="99.99")
    truth = pages(60)
    readings = [
        Prediction(page.id, "", dict(page.labels), dict.fromkeys(page.labels, 0.9 + index / 1000))
        for index, page in enumerate(truth)
    ]
    for index in range(20, 26):  # an unsure reading is wrong and says so
        readings[index] = Prediction(f"r{index}", "", {**truth[index].labels, "total": "1.11"}, {"total": 0.3})
    ranked = [s for s in audit_labels(items, KINDS, {"other": readings}) if "reading" in {e.check for e in s.evidence}]
    assert (ranked[0].id, ranked[0].field) == ("r10", "total")
    assert ranked[0].suggestion == truth[10].labels["total"]
    assert ranked[0].suspicion > 3 * max((suspect.suspicion for suspect in ranked[1:]), default=0.0)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
@example([(0.0, False)] * 5 + [(0.5, value) for value in (False, True, True, True, True)] + [(1.0, True)])
def test_rising_means_rise_and_keep_equal_orders_together(pairs: list[tuple[float, bool]]) -> None:
    order = np.array([first for first, _ in pairs])
    values = np.array([float(second) for _, second in pairs])
    fitted = rising_means(order, values)
    assert fitted.min() >= 0 and fitted.max() <= 1
    ranked = np.argsort(order, kind="stable")
    assert (np.diff(fitted[ranked]) >= -1e-9).all()
    for value in set(order):
        assert np.ptp(fitted[order == value]) == 0


VALUES = st.one_of(st.none(), st.text(max_size=8), st.integers())


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), max_size=12))
def test_any_labels_are_ranked_without_a_fault(labels: list[dict[str, object]]) -> None:
    items = [LabelledPage(str(index), values, text="a b 1") for index, values in enumerate(labels)]
    for suspect in audit_labels(items, {}):
        assert 0 < suspect.suspicion <= 1
