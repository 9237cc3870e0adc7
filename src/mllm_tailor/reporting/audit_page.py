"""The page on which a person decides about suspicious labels: one file, no network, one key for each decision.

It is the only page with a script. The content security policy names the script by its hash, so no text of the data can
run; every value is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mllm_tailor.audit import Suspect
from mllm_tailor.core.io import write_atomic
from mllm_tailor.reporting.html import page
from mllm_tailor.scoring.text import as_text


@dataclass(frozen=True)
class SuspectCard:
    """One suspicious label as it is shown."""

    id: str
    field: str
    label: str
    label_json: str  # as the decision names it
    reasons: tuple[tuple[str, str], ...]  # check and reason
    suggestion: str
    others: tuple[tuple[str, str], ...]  # the other labels of the sample
    image: str | None  # data URI


@dataclass(frozen=True)
class AuditPage:
    """Everything on the page."""

    name: str
    made: str
    samples: int
    values: int
    suspects: int
    decided: int
    sources: Mapping[str, int]  # kind of evidence -> samples
    apply: str  # the command that applies the decisions
    cards: Sequence[SuspectCard]

    @property
    def shown(self) -> int:
        """Labels on the page."""
        return len(self.cards)


def make_card(suspect: Suspect, labels: Mapping[str, Any], jpeg: bytes | None) -> SuspectCard:
    """A suspicious label with the sample's other labels and its image."""
    return SuspectCard(
        id=suspect.id,
        field=suspect.field,
        label=as_text(suspect.label),
        label_json=json.dumps(suspect.label, ensure_ascii=False, separators=(",", ":")),
        reasons=tuple((item.check, item.reason) for item in suspect.evidence),
        suggestion=suspect.suggestion,
        others=tuple((name, as_text(value)) for name, value in labels.items() if name != suspect.field),
        image="data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii") if jpeg else None,
    )


def write_audit_page(data: AuditPage, path: Path) -> None:
    """Write the page atomically."""
    script = files("mllm_tailor.reporting").joinpath("templates/audit.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    html = page("audit.html", data=data, script=Markup(script), script_hash=f"sha256-{digest}")  # noqa: S704 (our own file)
    write_atomic(path, html)
