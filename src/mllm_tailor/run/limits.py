"""What cannot be learned or said under the recipe's limits, found before training, by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mllm_tailor.data import DataIssue
from mllm_tailor.models import Length
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.dataset import Excluded, Splits
from mllm_tailor.run.ledger import measure_all
from mllm_tailor.run.predict import open_base
from mllm_tailor.run.resolve import ResolvedRun

UNUSUAL_RATE = (1 / 100, 30.0)  # of a method's own learning rate: below it learns nothing, above it diverges


def without_unreadable(run: ResolvedRun, splits: Splits) -> Splits:
    """The splits without samples that the model cannot read, each with a line in the ledger."""
    if run.model.units is not None:
        return splits  # recordings become text once the codebook is fitted
    _, issues = measure_all(open_base(run), run.task, splits)
    return excluding(splits, issues)


def excluding(splits: Splits, issues: list[DataIssue]) -> Splits:
    """The splits without the samples of these issues, held-out ones included."""
    dropped = {
        issue.sample_id: Excluded(issue.sample_id, issue.source, issue.problem)
        for issue in issues
        if issue.sample_id is not None
    }
    return splits.without(dropped, held_out=True) if dropped else splits


def limit_warnings(run: ResolvedRun, splits: Splits, lengths: Mapping[str, Length]) -> Iterator[DataIssue]:
    """Warnings for answers that no reply can be as long as, and for an unusual learning rate."""
    limit = run.recipe.predict.max_new_tokens
    writes = run.mode is not DecodingMode.LIKELIHOOD and run.recipe.predict.fields == "together"
    sources = {sample.id: sample.source for sample in (*splits.train, *splits.dev, *splits.held_out)}
    longer = {name: lengths[name].supervised for name in sources if name in lengths} if writes else {}
    longer = {name: tokens for name, tokens in longer.items() if tokens > limit}
    for name, tokens in longer.items():
        yield DataIssue(
            sources[name],
            f"{name}: its answer has {tokens:,} tokens, and no reply can have over predict.max_new_tokens ({limit:,})",
            f"raise predict.max_new_tokens to {max(longer.values()):,} at least",
            name,
            "warning",
        )
    stated = run.recipe.train.learning_rate
    usual = run.method.peak_learning_rate(None)
    if stated is not None and not UNUSUAL_RATE[0] * usual <= stated <= UNUSUAL_RATE[1] * usual:
        yield DataIssue(
            "train.learning_rate",
            f"{stated:g} is far from this method's own rate of {usual:g}",
            "leave it out, unless it is meant",
            severity="warning",
        )
