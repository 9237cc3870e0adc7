"""`tailor check`: everything that can go wrong with data, seen before any training."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mllm_tailor.commands.console import command, show, show_heading
from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.io import human_bytes, human_time
from mllm_tailor.core.terminal import Table
from mllm_tailor.data import DataIssue, ValidationResult
from mllm_tailor.models import Length, LoadedModel, encode
from mllm_tailor.recipe import read_recipe, stage_recipes
from mllm_tailor.run.cost_estimate import CostEstimate, estimate_cost
from mllm_tailor.run.dataset import SHOWN_FAULTS, Job, prepare
from mllm_tailor.run.epoch_summary import plan, print_plan
from mllm_tailor.run.ledger import measure
from mllm_tailor.run.pipeline import check_model, check_words
from mllm_tailor.run.predict import generate, open_base
from mllm_tailor.run.resolve import resolve_from_data
from mllm_tailor.run.scores import modes
from mllm_tailor.run.speech_units import with_units
from mllm_tailor.run.stages import check_stages, leaks_between
from mllm_tailor.tasks import make_task

SHOWN_SPANS = 3
READ = 2  # held-out samples, to learn how long reading takes


def check_recipe(path: Path, overrides: list[str], *, decode: bool) -> bool:
    """Print what was found; True when a run may start."""
    recipe = read_recipe(path, overrides)
    parts = [resolve_from_data(one) for one in stage_recipes(recipe) or (recipe,)]
    for one in parts:
        check_words(one)
    check_stages(parts)
    jobs = [prepare(one, make_task(one), exclude_faulty=True, decode=decode) for one in parts]
    leaks = leaks_between(jobs)
    ready = [_check_job(job, found, staged=bool(recipe.stages)) for job, found in zip(jobs, leaks, strict=True)]
    if all(ready):
        show(("Ready.", "bold green"), f" Next: {command('run', path)}")
    return all(ready)


def _check_job(job: Job, leaks: Sequence[DataIssue], *, staged: bool) -> bool:
    """One stage or the whole; its lengths and costs are those of the untouched model, which no stage changes."""
    assert job.validation is not None
    if staged:
        show_heading(f"Stage {job.recipe.name}")
    validation = replace(job.validation, faults=(*job.validation.faults, *leaks))
    _print_parts(job)
    _print_patterns(validation)
    faults_ok = _print_faults(validation, job.recipe.data.faulty == "exclude")
    with tempfile.TemporaryDirectory() as folder:
        job = with_units(job, Path(folder) / "units.safetensors")
        check_model(job.recipe)
        model = open_base(job.recipe)
    lengths = measure(model, job)
    print_plan(plan(job, lengths))
    _print_lengths(lengths)
    _print_spans(model, job.phrased[:SHOWN_SPANS])
    reading = _reading_seconds(model, job)
    del model
    print_forecast(estimate_cost(job, reading, lengths))
    return faults_ok


def _reading_seconds(model: LoadedModel, job: Job) -> float:
    """Of base and tuned over all held-out samples, from a few that are read."""
    few = job.held_out[:READ]
    began = time.perf_counter()
    for mode in modes(job.task):
        generate(mode, model, job.task, few, job.recipe.predict)
    return 2 * (time.perf_counter() - began) / len(few) * len(job.held_out)


def _print_parts(job: Job) -> None:
    table = Table(f"{job.recipe.data.train} (layout: {job.dataset.layout})", "split", "samples", "groups")
    for part, samples in job.parts().items():
        groups = {sample.group for sample in samples if sample.group}
        table.add_row(part.replace("_", " "), str(len(samples)), str(len(groups)) if groups else "–")
    table.add_row("excluded", str(len(job.excluded)), "")
    show(table)


def _print_patterns(validation: ValidationResult) -> None:
    """What each field holds, and the ways it is written: many ways are a sign of labels that disagree."""
    columns = ("field", "filled", "empty", "distinct", "longest", "formats (count, example)")
    table = Table("Fields", *columns, numbers=False)
    for field in validation.fields:
        ways = [f"{way.shape} ({way.count}, {way.examples[0]})" for way in field.patterns]
        counts = map(str, (field.filled, field.empty, field.distinct, field.longest))
        table.add_row(field.name, *counts, "; ".join(ways))
    show(table)


def _print_faults(validation: ValidationResult, excluding: bool) -> bool:
    """Every fault by row; True when none of them refuses the run."""
    errors, warnings = validation.errors(), validation.warnings()
    wrong = "excluded, as the recipe asks (data.faulty)" if excluding else "to fix"
    for title, style, faults in ((wrong, "red", errors), ("worth a look", "yellow", warnings)):
        if faults:
            show((f"{len(faults)} {title}", f"bold {style}"))
            for fault in faults[: SHOWN_FAULTS if style == "yellow" else None]:
                show(f"  {fault.source}: {fault.problem} — {fault.fix}")
            if style == "yellow" and len(faults) > SHOWN_FAULTS:
                show(f"  … and {len(faults) - SHOWN_FAULTS} more")
    if errors and not excluding:
        show("Fix these rows, or run with --exclude-faulty to continue without them.")
    return excluding or not errors


def _print_lengths(lengths: dict[str, Length]) -> None:
    table = Table("Length of the samples, in tokens", "", "shortest", "median", "longest")
    for name in ("tokens", "tiles", "supervised"):
        values = sorted(getattr(length, name) for length in lengths.values())
        table.add_row(name, str(values[0]), str(values[len(values) // 2]), str(values[-1]))
    show(table)


def _print_spans(model: LoadedModel, samples: tuple[Conversation, ...]) -> None:
    """The very words that carry loss, decoded back from the labels."""
    show(("What is learned", "bold"), " (the label span, decoded back):")
    for sample in samples:
        labels = encode(sample, model).labels
        show(f"  {sample.id}: {model.tokenizer.decode(labels[labels >= 0])}")


def print_forecast(forecast: CostEstimate) -> None:
    """Memory and minutes on this machine."""
    seeing = f", reading the training pictures {human_time(forecast.seeing_seconds)}" if forecast.seeing_seconds else ""
    processes = f" in {forecast.processes} processes" if forecast.processes > 1 else ""
    show(
        ("Cost estimate", "bold"),
        f" on this machine, from one step: peak memory about {human_bytes(forecast.peak_bytes)}, "
        f"training about {human_time(forecast.training_seconds)}{processes}{seeing}, "
        f"scoring base and tuned about {human_time(forecast.scoring_seconds)}",
    )
