"""`tailor label`: a larger run or an endpoint drafts labels of unlabelled files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.optional import need
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import read_samples
from mllm_tailor.generation import read_inputs
from mllm_tailor.recipe import read_single
from mllm_tailor.run.label import (
    LABELLED,
    LEDGER,
    Drafted,
    Price,
    Teacher,
    check_task,
    draft_labels,
    samples_without_labels,
)
from mllm_tailor.run.new_files import predictor_of_run
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.run.teacher import RunTeacher

SHOWN_REASONS = 8


@dataclass(frozen=True)
class LabelOptions:
    """Options of the command."""

    out: Path | None = None
    recipe: Path | None = None  # for an endpoint: whose task is labelled
    model: str | None = None  # its name at the endpoint
    key_variable: str = "OPENAI_API_KEY"
    price: str | None = None
    temperature: float = 0.7
    seed: int = 0


def label_folder(folder: Path, teacher: str, options: LabelOptions) -> Drafted:
    """Draft labels of the files in a folder that have none.

    Raises:
        RunError: for a teacher that is neither a finished run nor an address, or that stops answering.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder — name the folder of the files to label")
    price = read_price(options.price)
    out = options.out or folder.with_name(f"{folder.resolve().name}-labels")
    run, reader = _teacher(teacher, options)
    check_task(run.task, run.metrics)
    samples = _unlabelled(folder, run)
    drafted = draft_labels(out, samples, run, reader, price)
    _show(drafted, folder, out, priced=options.price is not None)
    return drafted


def read_price(text: str | None) -> Price:
    """`0.15,0.60`: of a million tokens read and written.

    Raises:
        RunError: for anything else.
    """
    if text is None:
        return Price()
    try:
        read, written = (float(word) for word in text.split(","))
    except ValueError:
        raise RunError("--price: two numbers, of a million tokens read and written, such as 0.15,0.60") from None
    return Price(read, written)


def _teacher(teacher: str, options: LabelOptions) -> tuple[ResolvedRun, Teacher]:
    if not teacher.startswith(("http://", "https://")):
        predictor = predictor_of_run(Path(teacher))
        return predictor.run, RunTeacher(predictor, options.temperature, options.seed)
    need("httpx2", "serve", "`tailor label --teacher URL`", RunError)
    from mllm_tailor.serving.endpoint_teacher import EndpointTeacher
    from mllm_tailor.serving.openai_client import Endpoint

    if options.recipe is None or options.model is None:
        raise RunError(
            "an endpoint needs a task and the name of a model — pass --recipe (whose task is labelled) and --model"
        )
    run = resolve(read_single(options.recipe, []))
    endpoint = Endpoint(teacher, options.model, os.environ.get(options.key_variable) or None)
    return run, EndpointTeacher(endpoint, run, options.temperature, options.seed)


def _unlabelled(folder: Path, run: ResolvedRun) -> list[Sample]:
    """The files of the folder, less those that it has labels of."""
    samples = read_inputs([folder])
    try:
        labelled = read_samples(folder, on_issue=lambda _: None).samples
    except DataError:  # nothing there is recognised as labelled
        return samples
    return samples_without_labels(samples, iter(labelled), run.task)


def _show(drafted: Drafted, folder: Path, out: Path, *, priced: bool) -> None:
    total = sum(drafted.counts.values())
    labelled = drafted.counts.get(LABELLED, 0)
    show(f"{labelled} of {total} files labelled: {drafted.labels}")
    if drafted.kept:
        show(f"{drafted.kept} labels that were there already are as they were.")
    for status, count in sorted(drafted.counts.items()):
        if status != LABELLED:
            show(f"  {count} {status}")
    for reason, count in sorted(drafted.reasons.items(), key=lambda item: -item[1])[:SHOWN_REASONS]:
        show(f"    {count} times: {reason}")
    show(f"What was refused, and the tokens of every file: {out / LEDGER}")
    if priced:
        each = f", {drafted.cost / labelled:.5f} a label" if labelled else ""
        tokens = f"{drafted.prompt_tokens:,} tokens read, {drafted.reply_tokens:,} written"
        show(f"Cost: {drafted.cost:.4f} for {tokens}{each}")
    if labelled:
        show(f"Learn from them: tailor run RECIPE data.train={drafted.labels} data.media_root={folder}")
    show_json(
        {
            "labels": str(drafted.labels),
            "ledger": str(out / LEDGER),
            "counts": drafted.counts,
            "kept": drafted.kept,
            "reasons": drafted.reasons,
            "prompt_tokens": drafted.prompt_tokens,
            "reply_tokens": drafted.reply_tokens,
            "cost": drafted.cost if priced else None,
        }
    )
