"""What is wrong with a row: said once, shown to the user, written to the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class DataIssue:
    """One fault of the data. An `error` refuses the run (or excludes the sample); a `warning` is only shown."""

    source: str  # "file:row"
    problem: str
    fix: str
    sample_id: str | None = None  # None: the row never became a sample
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.source}: {self.problem} — {self.fix}"

    @classmethod
    def of(cls, error: Exception, source: str, sample_id: str | None = None) -> DataIssue:
        """The fault an error message of the form "file:row: what is wrong — what to do" stands for."""
        text = str(error).removeprefix(source).lstrip(": ")
        problem, _, fix = text.rpartition(" — ")
        return cls(source, problem or text, fix if problem else "fix or remove this row", sample_id)
