"""`tailor next`: which unlabelled files to label first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mllm_tailor.commands.console import command, show, show_json
from mllm_tailor.core.io import write_jsonl
from mllm_tailor.core.terminal import Table
from mllm_tailor.run.next_files import rank_files

SHOWN = 20


def rank_next(run: Path, paths: Sequence[Path | str], out: Path | None, count: int | None) -> None:
    """Rank files, print the first, write all of them as rows.

    Raises:
        RunError: for an unfinished run, or where no file can be ranked.
    """
    folder = run.with_name(f"{run.name}-next")
    out = out or folder / "next.jsonl"
    ranking = rank_files(run, paths, folder / "predictions.jsonl", count)
    rows = [{"rank": number, **asdict(file)} for number, file in enumerate(ranking.files, 1)]
    write_jsonl(out, rows)
    table = Table("Files to label first", "file", "worth", "doubt", "distance", numbers=True)
    for file in ranking.files[:SHOWN]:
        table.add_row(file.file, f"{file.worth:.2f}", f"{file.doubt:.2f}", f"{file.distance:.2f}")
    show(table)
    show(
        "doubt: how many values are expected to be wrong; distance: from the nearest of "
        f"{ranking.labelled} training files and of the files above, 0 (alike) to 2; worth: their product"
    )
    if not ranking.calibrated:
        show("The run has no calibration: doubts rank files, but count no wrong values (docs/confidence.md).")
    for problem in ranking.unread[:SHOWN]:
        show(f"not ranked: {problem}")
    show(f"{len(rows)} files in {out}. Label the first ones, or review them: {command('review', run, 'FILE...')}")
    show_json({"next": str(out), "files": rows, "unread": list(ranking.unread), "calibrated": ranking.calibrated})
