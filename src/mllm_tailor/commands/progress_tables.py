"""What commands print of a run while it goes on and when it has ended."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_tailor.commands.console import show, show_heading
from mllm_tailor.core.terminal import Table
from mllm_tailor.reporting.tables import confusion_table, forgetting_tables, gain_table, score_table
from mllm_tailor.run.epoch_summary import Share
from mllm_tailor.run.events import EpochPlanned, FoldStarted, RunEvent, RunScored, StageEnded, StageStarted
from mllm_tailor.run.scores import RunScores
from mllm_tailor.scoring import Forgetting
from mllm_tailor.scoring.confusion import Confusion
from mllm_tailor.scoring.systems import System


def show_event(event: RunEvent) -> None:
    """Print what belongs to an event."""
    match event:
        case StageStarted(number, count, name):
            show_heading(f"Stage {number} of {count}: {name}")
        case FoldStarted(number, count):
            what = "the final model, on all samples" if number == count else f"fold {number}, scored by the other folds"
            show_heading(f"Training {number} of {count}: {what}")
        case EpochPlanned(shares):
            show_epoch(shares)
        case RunScored(folder, scores):
            show_scores(scores)
            show(f"Report: {folder.report}")
        case StageEnded(forgetting):
            show_forgetting(forgetting)


def show_epoch(shares: Sequence[Share]) -> None:
    """What an epoch holds, where there is more than one source or modality."""
    if len(shares) < 2:
        return
    columns = ("source", "modality", "samples", "distinct", "tokens", "of all tokens", "learned tokens")
    table = Table("An epoch of training", *columns)
    every = sum(share.tokens for share in shares)
    for share in shares:
        figures = (f"{share.samples:,}", f"{share.distinct:,}", f"{share.tokens:,}", f"{share.tokens / every:.1%}")
        table.add_row(share.source, share.modality, *figures, f"{share.learned:,}")
    show(table)


def show_scores(scores: RunScores) -> None:
    """The gain, overall and by field, and every system beside it."""
    headline = scores.metrics[0]
    shown = {name: gain for name, gain in scores.gains.items() if name in scores.metrics}
    show(gain_table(shown, f"Gain on {len(scores.held_out.ids)} held-out samples ({scores.mode})"))
    show(gain_table(scores.gains[headline].by_field, f"{headline}, by field"))
    show(score_table(scores.systems, "Every system on the same samples"))
    for column, values in scores.breakdowns.items():
        tuned = scores.systems[System("tuned", scores.mode).key]
        parts = {f"{value} ({len(indices)})": tuned.subset(indices) for value, indices in values.items()}
        show(score_table(parts, f"The tuned model by {column}"))
    if scores.classes:
        confusion = Confusion.of(scores.held_out.labels, scores.tuned_predictions, scores.classes)
        show(confusion_table(confusion))


def show_forgetting(forgetting: Forgetting) -> None:
    """The table of states and sets, and what every set gained and lost."""
    for table in forgetting_tables(forgetting):
        show(table)
