"""The page of a run of several stages: what each brought, what the later ones cost, and the way to each one's own."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

from mllm_tailor.core.io import write_atomic
from mllm_tailor.reporting import charts
from mllm_tailor.reporting.html import page
from mllm_tailor.scoring.forgetting import Progression, forgotten


def write_stages(name: str, found: Progression, pages: Mapping[str, str], recipe: str, path: Path) -> None:
    """Write it, whole or not at all; `pages` names each set's own report, relative to `path`."""
    values = [
        [(value, charts.bar(value, "tuned") if value else None) for one in found.sets if [value := one.value(state)]]
        for state in range(len(found.states))
    ]
    text = page(
        "stages.html",
        name=name,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        found=found,
        rows=list(zip(found.states, values, strict=True)),
        changes=list(found.changes()),
        forgotten=forgotten(found),
        pages=pages,
        recipe=recipe,
    )
    write_atomic(path, text)
