"""`tailor check`: everything that can go wrong with data, seen before any training."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mllm_tailor.commands.console import command, show, show_heading
from mllm_tailor.commands.progress_tables import show_epoch
from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.io import human_bytes, human_time
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.terminal import Table
from mllm_tailor.data import ValidationResult
from mllm_tailor.models import Length, LoadedModel, encode
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.cost_estimate import CostEstimate, estimate_cost
from mllm_tailor.run.dataset import SHOWN_ISSUES, Splits, prepare
from mllm_tailor.run.epoch_summary import summarise_epoch
from mllm_tailor.run.execute import resolve_stages
from mllm_tailor.run.ledger import measure
from mllm_tailor.run.pipeline import check_model
from mllm_tailor.run.predict import generate, open_base
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.speech_units import with_speech_units
from mllm_tailor.run.stages import leaks_between

SHOWN_SPANS = 3
READ = 2  # held-out samples, to learn how long reading takes


def check_recipe(path: Path, overrides: list[str], *, decode: bool) -> bool:
    """Print what was found; True when a run may start."""
    recipe = read_recipe(path, overrides)
    runs = resolve_stages(recipe)
    prepared = [prepare(run, exclude_faulty=True, decode=decode) for run in runs]
    leaks = leaks_between([(run, splits) for run, (splits, _) in zip(runs, prepared, strict=True)])
    ready = []
    for run, (splits, validation), issues in zip(runs, prepared, leaks, strict=True):
        if recipe.stages:
            show_heading(f"Stage {run.name}")
        ready.append(_check_run(run, splits, replace(validation, faults=(*validation.faults, *issues))))
    if all(ready):
        show(("Ready.", "bold green"), f" Next: {command('run', path)}")
    return all(ready)


def _check_run(run: ResolvedRun, splits: Splits, validation: ValidationResult) -> bool:
    """One stage or the whole; its lengths and costs are those of the base model, which no stage changes."""
    _print_parts(run.recipe.data.train, splits)
    _print_patterns(validation)
    faults_ok = _print_faults(validation, run.recipe.data.faulty == "exclude")
    with tempfile.TemporaryDirectory() as folder:
        run = with_speech_units(run, splits.learned, Path(folder) / "units.safetensors")
        check_model(run)
        model = open_base(run)
    lengths = measure(model, run.task, splits)
    show_epoch(summarise_epoch(run.recipe.data.train, splits, lengths))
    _print_lengths(lengths)
    _print_spans(model, splits.phrased[:SHOWN_SPANS])
    seconds = _prediction_seconds(model, run, splits.held_out)
    del model
    print_forecast(estimate_cost(run, splits, seconds, lengths))
    return faults_ok


def _prediction_seconds(model: LoadedModel, run: ResolvedRun, held_out: Sequence[Sample]) -> float:
    """Of base and tuned over all held-out samples, from a few that are predicted."""
    few = held_out[:READ]
    began = time.perf_counter()
    for mode in run.modes:
        generate(mode, model, run, few)
    return 2 * (time.perf_counter() - began) / len(few) * len(held_out)


def _print_parts(data: str, splits: Splits) -> None:
    table = Table(f"{data} (layout: {splits.layout})", "split", "samples", "groups")
    for part, samples in splits.by_name().items():
        groups = {sample.group for sample in samples if sample.group}
        table.add_row(part.replace("_", " "), str(len(samples)), str(len(groups)) if groups else "–")
    table.add_row("excluded", str(len(splits.excluded)), "")
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
            for fault in faults[: SHOWN_ISSUES if style == "yellow" else None]:
                show(f"  {fault.source}: {fault.problem} — {fault.fix}")
            if style == "yellow" and len(faults) > SHOWN_ISSUES:
                show(f"  … and {len(faults) - SHOWN_ISSUES} more")
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
    seeing = f", reading the training pictures {human_time(forecast.vision_seconds)}" if forecast.vision_seconds else ""
    processes = f" in {forecast.processes} processes" if forecast.processes > 1 else ""
    show(
        ("Cost estimate", "bold"),
        f" on this machine, from one step: peak memory about {human_bytes(forecast.peak_bytes)}, "
        f"training about {human_time(forecast.training_seconds)}{processes}{seeing}, "
        f"scoring base and tuned about {human_time(forecast.scoring_seconds)}",
    )
