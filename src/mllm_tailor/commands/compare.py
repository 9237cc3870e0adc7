"""`tailor compare`: two runs on the held-out samples they share, or a run and predictions of another origin."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.commands.score import distinct_names, score_predictions
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import human_bytes, human_time, read_json
from mllm_tailor.core.terminal import Table
from mllm_tailor.reporting.tables import gain_table
from mllm_tailor.run.data_record import read_data_facts, read_held_out
from mllm_tailor.run.fingerprints import held_out_contents
from mllm_tailor.run.run_dir import RunFolder, open_run, read_scores
from mllm_tailor.scoring import Gain, Scores, compare

logger = logging.getLogger(__name__)
SHOWN_IDS = 10  # samples named in a message


def compare_runs(first: Path, second: Path) -> None:
    """Print the difference of two tuned models with its interval, and what each cost.

    One of the two may be a file of predictions, which are scored against the labels of the other.

    Raises:
        RunError: when a run is unfinished or the two share no held-out sample.
        DataError: when a file of predictions does not fit the run.
    """
    files = [path for path in (first, second) if path.is_file()]
    if files:
        run = next((path for path in (first, second) if path not in files), None)
        if run is None:
            raise RunError(
                f"neither {first} nor {second} is a run — name the labels: tailor score LABELS {first} {second}"
            )
        score_predictions(run, [first, second], metrics=(), kinds=(), group_by=None)
        return
    runs = (open_run(first), open_run(second))
    scores = [_tuned(run) for run in runs]
    in_both = set(scores[0].ids) & set(scores[1].ids)
    contents = [held_out_contents(run) for run in runs]
    other = [name for name in scores[0].ids if name in in_both and contents[0].get(name) != contents[1].get(name)]
    if not in_both.difference(other):
        why = ", or theirs have other labels or files" if other else ""
        raise RunError(f"{first} and {second} share no held-out sample{why} — compare runs on the same data")
    ids = [name for name in scores[0].ids if name in in_both.difference(other)]
    if other:
        named = ", ".join(other[:SHOWN_IDS]) + (f" and {len(other) - SHOWN_IDS} more" if other[SHOWN_IDS:] else "")
        logger.warning("Left out, since the two runs had other labels or files for them: %s", named)
    groups = _groups(runs[0], ids)
    folds = max(int(read_scores(run).get("folds", 1)) for run in runs)  # models that share training samples
    gains = compare(*(_only(item, ids) for item in scores), groups=groups, folds=folds)
    left_out = sum(len(item.ids) for item in scores) - 2 * (len(ids) + len(other))
    note = f"; {left_out} samples that only one of them has are left out" if left_out else ""
    costs = [Cost.of(run) for run in runs]
    names = distinct_names((first, second))
    show(gain_table(gains, f"{len(ids)} shared held-out samples{note}", first=names[0], second=names[1]))
    for metric in _by_field(gains):
        show(
            gain_table(gains[metric].by_field, f"{metric.replace('_', ' ')}, by field", first=names[0], second=names[1])
        )
    show(_cost_table(costs, names))
    reviews = [read_data_facts(run).get("reviews", {}) for run in runs]
    for name, learned in zip(names, reviews, strict=True):
        for line in _corrections(learned, reviews):
            show(f"{name} {line}")
    show_json(
        {
            "runs": [str(first), str(second)],
            "shared_samples": len(ids),
            "left_out": left_out,
            "changed": other,
            "difference": {name: gain.row() for name, gain in gains.items()},
            "cost": [asdict(cost) for cost in costs],
            "reviews": reviews,
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


def _groups(run: RunFolder, ids: Sequence[str]) -> list[str | None]:
    held_out = read_held_out(run)
    groups = dict(zip(held_out.ids, held_out.groups, strict=True))
    return [groups.get(sample_id) for sample_id in ids]


def _corrections(reviews: Mapping[str, Any], of_both: Sequence[Mapping[str, Any]]) -> list[str]:
    """What only one of the two runs took from reviews, to which the difference is due."""
    only = {name: counts for name, counts in reviews.items() if not all(other.get(name) == counts for other in of_both)}
    return [
        f"also learned {counts['learned']} documents of {name} ({counts['corrected']} values corrected, "
        f"{counts['confirmed']} confirmed)"
        + (f"; {counts['audited']} audited ones extend its calibration" if counts["audited"] else "")
        for name, counts in only.items()
    ]


def _by_field(gains: Mapping[str, Gain]) -> list[str]:
    """The headline, and the cells of line items, where there is more than one field or column."""
    headline = next(iter(gains))
    return [name for name in dict.fromkeys((headline, "cell_f1")) if name in gains and len(gains[name].by_field) > 1]


def _only(scores: Scores, ids: Sequence[str]) -> Scores:
    index = {sample_id: number for number, sample_id in enumerate(scores.ids)}
    return scores.subset([index[sample_id] for sample_id in ids])


def _cost_table(costs: Sequence[Cost], names: Sequence[str]) -> Table:
    table = Table("Cost", "", *names, whole=range(len(names) + 1))
    table.add_row("method", *(cost.method for cost in costs))
    table.add_row("trained weights", *(f"{cost.trained_weights:,}" for cost in costs))
    table.add_row("training", *(human_time(cost.training_seconds) for cost in costs))
    table.add_row("samples/s", *(f"{cost.samples_per_second:.2f}" for cost in costs))
    table.add_row("peak memory", *(human_bytes(cost.peak_bytes) for cost in costs))
    return table
