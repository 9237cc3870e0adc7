"""`tailor compare`: two runs on the held-out samples they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import human_bytes, human_time, read_json
from mllm_tailor.core.terminal import Table
from mllm_tailor.reporting.tables import gain_table
from mllm_tailor.run.run_dir import RunFolder, open_run, read_scores
from mllm_tailor.scoring import Scores, compare


def compare_runs(first: Path, second: Path) -> None:
    """Print the difference of two tuned models with its interval, and what each cost.

    Raises:
        RunError: when a run is unfinished or the two share no held-out sample.
    """
    runs = (open_run(first), open_run(second))
    scores = [_tuned(run) for run in runs]
    in_both = set(scores[0].ids) & set(scores[1].ids)
    if not in_both:
        raise RunError(f"{first} and {second} share no held-out sample — compare runs on the same data")
    ids = [sample_id for sample_id in scores[0].ids if sample_id in in_both]
    gains = compare(*(_only(item, ids) for item in scores))
    left_out = sum(len(item.ids) for item in scores) - 2 * len(ids)
    note = f"; {left_out} samples that only one of them has are left out" if left_out else ""
    costs = [Cost.of(run) for run in runs]
    names = _distinct_names(first, second)
    show(gain_table(gains, f"{len(ids)} shared held-out samples{note}", first=names[0], second=names[1]))
    show(_cost_table(costs, names))
    show_json(
        {
            "runs": [str(first), str(second)],
            "shared_samples": len(ids),
            "left_out": left_out,
            "difference": {name: gain.row() for name, gain in gains.items()},
            "cost": [asdict(cost) for cost in costs],
        }
    )


@dataclass(frozen=True)
class Cost:
    """What a run trained and needed for it."""

    method: str
    trained_weights: int
    training_seconds: float
    samples_per_second: float
    peak_bytes: int

    @classmethod
    def of(cls, run: RunFolder) -> Cost:
        """Read from the run's folder."""
        training = read_json(run.training)
        return cls(
            method=str(run.recipe().method["name"]),
            trained_weights=sum(training["trained_by_part"].values()),
            training_seconds=training["seconds"],
            samples_per_second=training["samples_per_second"],
            peak_bytes=training["peak_bytes"],
        )


def _tuned(run: RunFolder) -> Scores:
    row = read_scores(run)
    return Scores.from_row(row["systems"][f"tuned_{row['mode']}"])


def _only(scores: Scores, ids: Sequence[str]) -> Scores:
    index = {sample_id: number for number, sample_id in enumerate(scores.ids)}
    return scores.subset([index[sample_id] for sample_id in ids])


def _distinct_names(first: Path, second: Path) -> tuple[str, str]:
    """The ends of two paths, as long as they must be to differ: `a/receipts` and `b/receipts`."""
    parts = (first.resolve().parts, second.resolve().parts)
    for count in range(1, max(map(len, parts))):
        names = tuple(str(Path(*path[-count:])) for path in parts)
        if names[0] != names[1]:
            return names[0], names[1]
    return first.name, f"{second.name} again"


def _cost_table(costs: Sequence[Cost], names: Sequence[str]) -> Table:
    table = Table("Cost", "", *names, whole=range(len(names) + 1))
    table.add_row("method", *(cost.method for cost in costs))
    table.add_row("trained weights", *(f"{cost.trained_weights:,}" for cost in costs))
    table.add_row("training", *(human_time(cost.training_seconds) for cost in costs))
    table.add_row("samples/s", *(f"{cost.samples_per_second:.2f}" for cost in costs))
    table.add_row("peak memory", *(human_bytes(cost.peak_bytes) for cost in costs))
    return table
