"""A review: the queue, leases, decisions and undo, and that nothing answered is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.reviews import TASK, make_review, reading

from mllm_tailor.core.errors import DataError
from mllm_tailor.data.reviews.desk import Change, Desk, Reviewer
from mllm_tailor.data.reviews.labels import AuditCount, count_audit, current_tree, finished_fields, undecided
from mllm_tailor.data.reviews.store import ConflictError, Entry, ReviewStore
from mllm_tailor.review.view import document_view

ANNE, BOB = Reviewer("tab-1", "Anne"), Reviewer("tab-2", "Bob")


def decide(desk: Desk, entry: Entry, action: str, field: str = "", after: object = None) -> Entry:
    change = Change(entry.document.sha256, action, entry.last, field, after, seconds=1.5)  # type: ignore[arg-type]
    return desk.change(ANNE, change)


def finish(desk: Desk, entry: Entry) -> Entry:
    for path in undecided(entry, desk.store.schema):
        entry = decide(desk, entry, "confirm", path)
    return decide(desk, entry, "finish")


def test_the_most_doubtful_document_comes_first_and_the_audit_gets_its_share(tmp_path: Path) -> None:
    desk = Desk(make_review(tmp_path, 3, accepted=1))
    order = []
    while (entry := desk.take(ANNE)) is not None:
        order.append(entry.document.id)
        finish(desk, entry)
    assert order == ["r2", "r3", "r1", "r0"]  # r3 is accepted: the audit's share is due after the first
    progress = desk.store.progress()
    assert (progress.done, progress.waiting, progress.audited, progress.corrected) == (4, 0, 1, 0)
    assert count_audit(desk.store) == AuditCount(values=9, wrong=0)
    audited = desk.undo(ANNE)
    while audited is not None and audited.document.id != "r3":
        audited = desk.undo(ANNE)
    assert audited is not None
    audited = decide(desk, audited, "correct", "total", "9.80")
    decide(desk, audited, "finish")
    assert count_audit(desk.store) == AuditCount(values=9, wrong=1)


def test_nothing_is_confirmed_by_itself(tmp_path: Path) -> None:
    desk = Desk(make_review(tmp_path, 1))
    entry = desk.take(ANNE)
    assert entry is not None
    left = undecided(entry, desk.store.schema)
    assert left == ["date", "total", "payment", "items.1.name", "items.1.price", "items"]  # the others are accepted
    with pytest.raises(DataError, match="not decided yet: date, total, payment"):
        decide(desk, entry, "finish")


def test_no_reviewer_gets_the_document_of_another(tmp_path: Path) -> None:
    clock = [1000.0]
    desk = Desk(make_review(tmp_path, 2, now=lambda: clock[0]), lease=60)
    first, second = desk.take(ANNE), desk.take(BOB)
    assert first and second and first.document.sha256 != second.document.sha256
    assert desk.take(Reviewer("tab-3", "Anne")) is None  # another tab of the same person
    assert desk.take(ANNE).document == first.document  # type: ignore[union-attr]  # after a reload
    clock[0] += 61
    desk.renew(BOB, second.document.sha256)
    third = desk.take(Reviewer("tab-3", "Anne"))
    assert third and third.document == first.document  # the lease has ended
    with pytest.raises(ConflictError, match="another reviewer has this document"):
        decide(desk, first, "confirm", "total")


def test_a_decision_about_an_older_state_is_refused(tmp_path: Path) -> None:
    desk = Desk(make_review(tmp_path, 1))
    entry = desk.take(ANNE)
    assert entry is not None
    decide(desk, entry, "confirm", "total")
    with pytest.raises(ConflictError, match="meanwhile"):
        decide(desk, entry, "confirm", "date")


def test_values_are_checked_by_the_task(tmp_path: Path) -> None:
    desk = Desk(make_review(tmp_path, 1))
    entry = desk.take(ANNE)
    assert entry is not None
    for field, value, problem in (
        ("total", "nine", "no amount"),
        ("payment", "cheque", "none of its choices"),
        ("tax", "1", "no value of this task"),
        ("items", "TEA", "values of its own"),
    ):
        with pytest.raises(DataError, match=problem):
            decide(desk, entry, "correct", field, value)
    entry = decide(desk, entry, "correct", "total", "9.80")
    assert entry.decisions[-1].row() | {"number": 0, "time": 0} == {
        "number": 0, "document": entry.document.sha256, "field": "total", "action": "correct", "before": "9.00",
        "after": "9.80", "confidence": 0.9, "seconds": 1.5, "reviewer": "Anne", "time": 0, "undoes": None,
    }  # fmt: skip


def test_rows_come_and_go_without_moving_others(tmp_path: Path) -> None:
    desk = Desk(make_review(tmp_path, 1))
    entry = desk.take(ANNE)
    assert entry is not None
    entry = decide(desk, entry, "remove_row", "items.0")
    entry = decide(desk, entry, "correct", "items.1.price", "5.50")
    entry = decide(desk, entry, "add_row", "items.2", {"name": "JAM"})
    entry = decide(desk, entry, "correct", "items.2.price", "1.00")
    expected = [{"name": "BUN", "price": "5.50"}, {"name": "JAM", "price": "1.00"}]
    assert finished_fields(entry, desk.store)["items"] == expected
    entry = finish(desk, entry)
    assert finished_fields(entry, desk.store)["items"] == expected


def test_a_row_is_put_where_it_stands_on_the_page(tmp_path: Path) -> None:
    desk = Desk(make_review(tmp_path, 1))
    entry = desk.take(ANNE)
    assert entry is not None
    names = [row["name"] for row in finished_fields(entry, desk.store)["items"]]

    def add(entry: Entry, number: int, above: int | None, name: str) -> Entry:
        change = Change(entry.document.sha256, "add_row", entry.last, f"items.{number}", {"name": name}, 1.0, above)
        return desk.change(ANNE, change)

    def shown(entry: Entry) -> list[str]:
        return [row["name"] for row in finished_fields(entry, desk.store)["items"]]

    entry = add(entry, 2, 1, "JAM")
    entry = add(entry, 3, 2, "MILK")
    entry = add(entry, 4, None, "SALT")
    assert shown(entry) == [names[0], "MILK", "JAM", names[1], "SALT"]
    assert [decision.before for decision in entry.decisions] == [{"above": 1}, {"above": 2}, None]
    with pytest.raises(DataError, match="no row 9"):
        add(entry, 5, 9, "RICE")
    assert document_view(entry, desk.store)["rows"]["items"] == [0, 3, 2, 1, 4]
    back = desk.undo(ANNE)
    assert back is not None and shown(back) == [names[0], "MILK", "JAM", names[1]]
    entry = decide(desk, back, "remove_row", "items.2")  # the row that another was put above
    assert shown(entry) == [names[0], "MILK", names[1]]


def test_undo_goes_back_step_by_step_into_the_document_before(tmp_path: Path) -> None:
    desk = Desk(make_review(tmp_path, 2))
    entry = desk.take(ANNE)
    assert entry is not None
    first = entry.document.sha256
    entry = finish(desk, decide(desk, entry, "correct", "total", "1.00"))
    assert (other := desk.take(ANNE)) is not None and other.document.sha256 != first
    assert desk.undo(BOB) is None  # not his
    steps = []
    while (back := desk.undo(ANNE)) is not None:
        steps.append((back.state, len(back.decisions)))
        assert back.document.sha256 == first
    assert steps[0] == ("open", 6) and steps[-1] == ("open", 0) and len(steps) == 7
    assert current_tree(back or desk.store.entry(first).document, (), desk.store.schema) if back else True
    assert desk.store.entry(first).last == 14  # actions are only ever added
    assert desk.take(BOB).document.sha256 == other.document.sha256  # type: ignore[union-attr]  # it was given back


def test_a_new_reading_replaces_one_that_nobody_decided_about(tmp_path: Path) -> None:
    from dataclasses import replace

    desk = Desk(make_review(tmp_path, 2))
    entry = desk.take(ANNE)
    assert entry is not None
    decide(desk, entry, "confirm", "total")
    by_id = {item.document.id: item.document for item in desk.store.entries()}
    taken = {
        name: desk.store.add(replace(document, reading=reading(0, company="NEW")), "doubtful", 1.0)
        for name, document in by_id.items()
    }
    assert taken == {"r0": True, "r1": False}


def test_another_task_and_other_files_are_refused(tmp_path: Path) -> None:
    store = make_review(tmp_path, 1)
    with pytest.raises(DataError, match="another task"):
        ReviewStore.begin(store.path, {"extract": {"total": "amount"}})
    with pytest.raises(DataError, match="no place for replies of the task `ground`"):
        ReviewStore.begin(tmp_path / "new.db", {"ground": {}})
    (tmp_path / "text.db").write_text("not a database")
    with pytest.raises(DataError, match="not the database of a review"):
        ReviewStore(tmp_path / "text.db")
    with pytest.raises(DataError, match="begins one"):
        ReviewStore(tmp_path / "missing.db")


def test_a_file_that_changed_since_it_was_read_is_not_finished(tmp_path: Path) -> None:
    desk = Desk(make_review(tmp_path, 1))
    entry = desk.take(ANNE)
    assert entry is not None
    (tmp_path / "scans" / "r0.png").write_bytes(b"another file")
    with pytest.raises(DataError, match="is not the file that was read"):
        finish(desk, entry)
    assert desk.store.entry(entry.document.sha256).state == "open"


WORKER = """
import sys
from pathlib import Path
from mllm_tailor.data.reviews.desk import Change, Desk, Reviewer
from mllm_tailor.data.reviews.store import ReviewStore
desk = Desk(ReviewStore(Path(sys.argv[1])))
me = Reviewer("tab", "Anne")
entry = desk.take(me)
for number in range(100000):
    change = Change(entry.document.sha256, "correct", entry.last, "company", f"NAME {number}")
    entry = desk.change(me, change)
    print(entry.decisions[-1].number, number, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_loses_no_answered_decision(tmp_path: Path) -> None:
    """SIGKILL in the middle of a correction: what was answered is there, and nothing is half there."""
    store = make_review(tmp_path, 1)
    worker = subprocess.Popen([sys.executable, "-c", WORKER, store.path], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    answered = [worker.stdout.readline() for _ in range(40)]
    os.kill(worker.pid, signal.SIGKILL)
    answered += worker.stdout.read().splitlines(keepends=True)
    worker.wait()
    complete = [tuple(map(int, line.split())) for line in answered if line.endswith("\n")]
    kept = {decision.number: decision.after for decision in ReviewStore(store.path).decisions()}
    assert len(complete) >= 40 and all(kept[number] == f"NAME {value}" for number, value in complete)
    assert len(kept) - len(complete) in (0, 1)  # the one in flight
    entry = Desk(store).take(Reviewer("tab", "Anne"))
    assert entry is not None and finished_fields(entry, store)["company"] == kept[max(kept)]


def test_a_damaged_database_is_named_and_nothing_of_it_is_used(tmp_path: Path) -> None:
    """A bit of the file, of one decision or of the order of two; what is no part of any row harms nothing."""
    desk = Desk(make_review(tmp_path, 1))
    entry = desk.take(ANNE)
    assert entry is not None
    finish(desk, decide(desk, entry, "correct", "total", "9.80"))
    path, whole = desk.store.path, desk.store.path.read_bytes()
    wanted = desk.store.decisions(), desk.store.entries()
    noticed = 0
    for position in range(0, len(whole), 499):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            store = ReviewStore(path)
        except DataError as error:
            noticed += str(path) in str(error)
            continue
        assert (store.decisions(), store.entries()) == wanted
    assert noticed > 10
    path.write_bytes(whole.replace(b'"9.80"', b'"9.90"', 1))
    with pytest.raises(DataError, match="damaged"):
        ReviewStore(path)
    path.write_bytes(whole)
    with desk.store.writing() as connection:
        connection.execute("DELETE FROM decisions WHERE number = 2")
    with pytest.raises(DataError, match="damaged"):
        ReviewStore(path)


def test_a_lease_of_a_clock_that_was_years_ahead_keeps_nobody_out(tmp_path: Path) -> None:
    times = [2e9, 1.9e9]
    desk = Desk(make_review(tmp_path, 1, now=lambda: times[0]))
    assert desk.take(ANNE) is not None and desk.take(BOB) is None
    del times[0]
    assert desk.take(BOB) is not None


def test_a_review_of_answers_has_one_text_field(tmp_path: Path) -> None:
    store = ReviewStore.begin(tmp_path / "corrections.db", {"answer": {}})
    assert list(store.schema["properties"]) == ["answer"] and TASK
