"""The work of reviewers: who gets which document, and what they decide. No answer is given before it is on the disk."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.strict_json import dump_json
from mllm_tailor.data.reviews.database import insert
from mllm_tailor.data.reviews.documents import Action, keep_copies
from mllm_tailor.data.reviews.labels import check_fields, current_tree, finished_fields, undecided
from mllm_tailor.data.reviews.store import EFFECTIVE, LEASE, ConflictError, Entry, ReviewStore, read_entry
from mllm_tailor.data.reviews.values import remove_row, schema_at, set_value, to_fields, to_tree, value_at

VALUE_ACTIONS: tuple[Action, ...] = ("confirm", "correct", "add_row", "remove_row")
CLOSING = {"finish": "done", "skip": "skipped"}


@dataclass(frozen=True)
class Reviewer:
    """Who works, and in which session (a tab of a browser): a document belongs to one session at a time."""

    session: str
    name: str


@dataclass(frozen=True)
class Change:
    """What a reviewer wants to do about a value, having seen the actions up to `seen`."""

    document: str
    action: Action
    seen: int
    field: str = ""
    after: Any = None
    seconds: float = 0.0
    above: int | None = None  # of add_row: the row of the same list above which the new one is put; None: the end


class Desk:
    """Hands out documents of a review and takes decisions. `audit` is the share of accepted ones that is audited."""

    def __init__(self, store: ReviewStore, *, audit: float = 0.05, lease: float = LEASE) -> None:
        self.store, self.audit, self.lease = store, audit, lease

    def take(self, reviewer: Reviewer) -> Entry | None:
        """The document that this session works on, else the next one that nobody has; None at the end of the queue."""
        with self.store.writing() as connection:
            now = self.store.now()
            own = connection.execute(
                "SELECT sha256 FROM documents WHERE holder = ? AND state = 'open' LIMIT 1", (reviewer.session,)
            ).fetchone()
            chosen = own or self._next(connection, now)
            if chosen is None:
                return None
            self._hold(connection, chosen["sha256"], reviewer)
            return read_entry(connection, chosen["sha256"])

    def hold(self, reviewer: Reviewer, document: str) -> None:
        """Take a certain document.

        Raises:
            ConflictError: when another session has it.
        """
        with self.store.writing() as connection:
            row = connection.execute(
                "SELECT holder, held_until FROM documents WHERE sha256 = ?", (document,)
            ).fetchone()
            if row is not None and self._is_taken(row, reviewer):
                raise ConflictError("another reviewer has this document")
            self._hold(connection, document, reviewer)

    def renew(self, reviewer: Reviewer, document: str) -> None:
        """A sign of life.

        Raises:
            ConflictError: when another reviewer has the document by now.
        """
        with self.store.writing() as connection:
            self._check_holder(connection, reviewer, document)
            self._hold(connection, document, reviewer)

    def release(self, reviewer: Reviewer) -> None:
        """Give back what this session has not finished."""
        with self.store.writing() as connection:
            connection.execute(
                "UPDATE documents SET holder = '', held_until = 0 WHERE holder = ? AND state = 'open'",
                (reviewer.session,),
            )

    def change(self, reviewer: Reviewer, change: Change) -> Entry:
        """Record a decision about a value, or finish or skip the document.

        Raises:
            ConflictError: when another reviewer has the document, or has decided about it meanwhile.
            DataError: for a value that does not fit its field, or a document that cannot be finished yet.
        """
        if change.action == "finish":
            self._prepare_to_finish(change.document)
        with self.store.writing() as connection:
            self._check_holder(connection, reviewer, change.document)
            entry = read_entry(connection, change.document)
            if entry.last != change.seen:
                raise ConflictError("somebody has decided about this document meanwhile — it is shown anew")
            before, after = self._values(entry, change)
            self._record(connection, reviewer, change, before, after, entry)
            if change.action in CLOSING:
                connection.execute(
                    "UPDATE documents SET state = ?, holder = '', held_until = 0 WHERE sha256 = ?",
                    (CLOSING[change.action], change.document),
                )
            else:
                self._hold(connection, change.document, reviewer)
            return read_entry(connection, change.document)

    def undo(self, reviewer: Reviewer) -> Entry | None:
        """Take back the reviewer's last action, also that of having finished a document, which is then open again.

        Returns the document it was about, now held by this session; None where there is nothing to take back.
        """
        with self.store.writing() as connection:
            last = self._last(connection, reviewer)
            if last is None:
                return None
            number, document = int(last["number"]), str(last["document"])
            undo = Change(document, "undo", 0, str(last["field"]))
            entry = read_entry(connection, document)
            decision = next(item for item in entry.decisions if item.number == number)
            self._record(connection, reviewer, undo, decision.after, decision.before, entry, undoes=number)
            connection.execute(
                "UPDATE documents SET holder = '', held_until = 0 WHERE holder = ? AND sha256 <> ?",
                (reviewer.session, document),
            )
            connection.execute("UPDATE documents SET state = 'open' WHERE sha256 = ?", (document,))
            self._hold(connection, document, reviewer)
            return read_entry(connection, document)

    # --- Inside a transaction ----------------------------------------------------------------------------------------

    def _next(self, connection: sqlite3.Connection, now: float) -> sqlite3.Row | None:
        """The most valuable document that nobody has; one of the audit as often as its share asks."""
        done = dict(connection.execute("SELECT kind, count(*) FROM documents WHERE state <> 'open' GROUP BY kind"))
        audit_first = done.get("audit", 0) < self.audit * sum(done.values())
        row: sqlite3.Row | None = connection.execute(
            "SELECT sha256 FROM documents WHERE state = 'open' AND kind <> 'accepted' AND "
            "held_until NOT BETWEEN ? AND ? ORDER BY (kind = 'audit') = ? DESC, worth DESC, sha256 LIMIT 1",
            (now, now + self.lease, audit_first),
        ).fetchone()
        return row

    def _hold(self, connection: sqlite3.Connection, document: str, reviewer: Reviewer) -> None:
        connection.execute(
            "UPDATE documents SET holder = ?, held_until = ? WHERE sha256 = ?",
            (reviewer.session, self.store.now() + self.lease, document),
        )

    def _check_holder(self, connection: sqlite3.Connection, reviewer: Reviewer, document: str) -> None:
        row = connection.execute("SELECT holder, state FROM documents WHERE sha256 = ?", (document,)).fetchone()
        if row is None:
            raise DataError(f"{document[:12]}: no document of this review")
        if row["state"] != "open" or row["holder"] != reviewer.session:
            raise ConflictError("another reviewer has this document by now")

    def _last(self, connection: sqlite3.Connection, reviewer: Reviewer) -> sqlite3.Row | None:
        """The reviewer's last action that counts, if it is the last about its document and nobody else has that."""
        row: sqlite3.Row | None = connection.execute(
            f"SELECT number, document, field, holder, held_until FROM decisions JOIN documents ON sha256 = document "  # noqa: S608
            f"WHERE reviewer = ? AND {EFFECTIVE} ORDER BY (holder = ?) DESC, number DESC LIMIT 1",
            (reviewer.name, reviewer.session),
        ).fetchone()
        if row is None:
            return None
        later = connection.execute(
            f"SELECT 1 FROM decisions WHERE document = ? AND number > ? AND {EFFECTIVE}",  # noqa: S608
            (row["document"], row["number"]),
        ).fetchone()
        return None if later or self._is_taken(row, reviewer) else row

    def _is_taken(self, row: sqlite3.Row, reviewer: Reviewer) -> bool:
        """Whether another session holds the document of a row. A clock that was wrong may have left longer leases."""
        left = row["held_until"] - self.store.now()
        return row["holder"] not in ("", reviewer.session) and 0 <= left <= self.lease

    def _record(
        self,
        connection: sqlite3.Connection,
        reviewer: Reviewer,
        change: Change,
        before: Any,
        after: Any,
        entry: Entry,
        *,
        undoes: int | None = None,
    ) -> None:
        confidence = entry.document.confidence.get(change.field)
        insert(
            connection,
            "decisions",
            change.document,
            change.field,
            change.action,
            dump_json(before, indent=None),
            dump_json(after, indent=None),
            None if confidence is None else float(confidence) + 0.0,  # SQLite knows no -0.0
            max(0.0, float(change.seconds)),
            reviewer.name,
            float(self.store.now()),
            undoes,
        )

    # --- Values ------------------------------------------------------------------------------------------------------

    def _values(self, entry: Entry, change: Change) -> tuple[Any, Any]:
        """The value before and after; refuses what does not fit."""
        if change.action in CLOSING:
            return None, None
        if change.action not in VALUE_ACTIONS:
            raise DataError(f"no action is called `{change.action}`")
        schema = self.store.schema
        part = schema_at(schema, change.field)
        tree = current_tree(entry.document, entry.decisions, schema)
        before = to_fields(value_at(tree, change.field), part)
        if change.action == "confirm":
            return before, before
        if change.action == "remove_row":
            remove_row(tree, change.field)
            return before, None
        if change.action == "correct" and part.get("type") in ("object", "array"):
            raise DataError(f"`{change.field}` has values of its own: correct those")
        after = to_fields(to_tree(change.after), part)
        self._check_value(entry, change, after, tree)
        if change.action != "add_row":
            return before, after
        if change.above is None:
            return None, after
        if value_at(tree, f"{change.field.rpartition('.')[0]}.{change.above}") is None:
            raise DataError(f"`{change.field}`: no row {change.above} to put it above")
        return {"above": change.above}, after

    def _check_value(self, entry: Entry, change: Change, after: Any, tree: dict[Any, Any]) -> None:
        """Refuse a value that the task does not take as a label; what is wrong elsewhere is not its fault.

        Raises:
            DataError: stating what is wrong.
        """
        schema, document, task = self.store.schema, entry.document, self.store.task
        name = change.field.partition(".")[0]

        def problem() -> str | None:
            return check_fields(document, {name: to_fields(tree.get(name), schema["properties"][name])}, task)

        earlier = problem()
        set_value(tree, change.field, to_tree(after), schema)
        now = problem()
        if now is not None and now != earlier:
            raise DataError(now)

    def _prepare_to_finish(self, document: str) -> None:
        """Copies of the files, before anything states that the document is finished.

        Raises:
            DataError: naming values that nobody looked at, or what is wrong with the label.
        """
        entry = self.store.entry(document)
        schema = self.store.schema
        left = undecided(entry, schema)
        if left:
            raise DataError(f"not decided yet: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}")
        if problem := check_fields(entry.document, finished_fields(entry, self.store), self.store.task):
            raise DataError(problem)
        keep_copies(entry.document, self.store.folder)
