"""The page of a run with stages: scores after each stage, gains and forgetting, links to the stage reports."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

from mllm_tailor.core.io import write_atomic
from mllm_tailor.reporting import charts
from mllm_tailor.reporting.html import page
from mllm_tailor.scoring.forgetting import Forgetting


def write_stages(name: str, forgetting: Forgetting, pages: Mapping[str, str], recipe: str, path: Path) -> None:
    """Write the page atomically; `pages` names each stage's report, relative to `path`."""
    values = [
        [(value, charts.bar(value, "tuned") if value else None) for value in (s.value(state) for s in forgetting.sets)]
        for state in range(len(forgetting.states))
    ]
    text = page(
        "stages.html",
        name=name,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        forgetting=forgetting,
        rows=list(zip(forgetting.states, values, strict=True)),
        changes=list(forgetting.changes()),
        forgotten=forgetting.forgotten(),
        pages=pages,
        recipe=recipe,
    )
    write_atomic(path, text)
