"""`tailor check`: everything that can go wrong with a recipe and its data, shown before any training."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.commands.console import command, show, show_heading, show_json
from mllm_tailor.commands.progress_tables import show_epoch
from mllm_tailor.core.io import human_bytes, human_time
from mllm_tailor.core.terminal import Table
from mllm_tailor.data import DataIssue
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.check import CheckResult, DataCheck, ModelCheck, check_in_steps
from mllm_tailor.run.cost_estimate import CostEstimate
from mllm_tailor.scoring import SamplesNeeded

SHOWN_WARNINGS = 20


def check_recipe(path: Path, overrides: list[str], *, decode: bool) -> bool:
    """Print what was found, as it is found; True when a run may start."""
    recipe = read_recipe(path, overrides)
    result = CheckResult()
    for stage in check_in_steps(recipe, decode=decode):
        if stage.model is not None:
            _show_model(stage.model)
            if not stage.model.ready and not stage.data.excludes:
                show("Fix these rows, or run with --exclude-faulty to leave them out.")
            continue
        result.stages.append(stage)
        if recipe.stages:
            show_heading(f"Stage {stage.name}")
        _show_data(stage.data)
    if result.ready:
        show(("Ready.", "bold green"), f" Next: {command('run', path, *overrides)}")
    show_json(result.row())
    return result.ready


def _show_data(check: DataCheck) -> None:
    splits = Table(f"{check.data} (layout: {check.layout})", "split", "samples", "groups")
    for split in check.splits:
        splits.add_row(split.name.replace("_", " "), str(split.samples), str(split.groups or "–"))
    show(splits)
    show(_power(check.power))
    if check.calibration:
        show(check.calibration)
    # many formats of one field are a sign of labels that disagree
    fields = Table(
        "Fields", "field", "filled", "empty", "distinct", "longest", "formats (count, example)", numbers=False
    )
    for facts in check.validation.fields:
        formats = [f"{pattern.shape} ({pattern.count}, {pattern.examples[0]})" for pattern in facts.patterns]
        counts = map(str, (facts.filled, facts.empty, facts.distinct, facts.longest))
        fields.add_row(facts.name, *counts, "; ".join(formats))
    show(fields)
    errors, warnings = check.validation.errors(), check.validation.warnings()
    if errors:
        what = "excluded, as the recipe asks (data.faulty)" if check.excludes else "to fix"
        show((f"{len(errors)} {what}", "bold red"))
        _show_issues(errors)
    if warnings:
        show((f"{len(warnings)} worth a look", "bold yellow"))
        _show_issues(warnings[:SHOWN_WARNINGS])
        if len(warnings) > SHOWN_WARNINGS:
            show(f"  … and {len(warnings) - SHOWN_WARNINGS} more (all of them with --json)")
    if not check.ready:
        show("Fix these rows, or run with --exclude-faulty to leave them out.")


def _power(power: SamplesNeeded) -> str:
    """What a score on the held-out split can decide, in one sentence or two."""
    units = f"{power.present_samples} held-out samples"
    if power.present_units != power.present_samples:
        units += f" in {power.present_units} independent groups"
    needed = f"about {power.samples} samples ({power.units} groups)" if "groups" in units else f"about {power.samples}"
    if power.smallest_gain is None:
        return f"{units} are too few for any interval; a gain of {power.points:g} points needs {needed}."
    decided = f"{units} usually decide a gain of {power.smallest_gain:.0f} points"
    return f"{decided}." if power.enough else f"{decided}; one of {power.points:g} points needs {needed}."


def _show_issues(issues: list[DataIssue]) -> None:
    for issue in issues:
        show(f"  {issue.source}: {issue.problem} — {issue.fix}")


def _show_model(check: ModelCheck) -> None:
    show_epoch(check.epoch)
    lengths = Table("Length of the samples, in tokens", "", "shortest", "median", "longest")
    for name, counts in check.lengths.items():
        lengths.add_row(name, str(counts.shortest), str(counts.median), str(counts.longest))
    show(lengths)
    for title, style, severity in (("to fix", "bold red", "error"), ("worth a look", "bold yellow", "warning")):
        if issues := [issue for issue in check.issues if issue.severity == severity]:
            show((f"{len(issues)} {title}, found with the model", style))
            _show_issues(issues[:SHOWN_WARNINGS])
            if len(issues) > SHOWN_WARNINGS:
                show(f"  … and {len(issues) - SHOWN_WARNINGS} more (all of them with --json)")
    show(("What is learned", "bold"), " (the text that carries loss, decoded back from the labels):")
    for sample_id, text in check.spans:
        show(f"  {sample_id}: {text}")
    _show_cost(check.cost)


def _show_cost(cost: CostEstimate) -> None:
    processes = f" in {cost.processes} processes" if cost.processes > 1 else ""
    vision = f", vision features {human_time(cost.vision_seconds)}" if cost.vision_seconds else ""
    training = human_time(cost.training_seconds)
    if cost.trainings > 1:
        whole = human_time(cost.trainings * (cost.training_seconds + cost.vision_seconds))
        training = f"{cost.trainings} trainings of {training} ({whole} in all)"
    show(
        ("Cost estimate", "bold"),
        f" for this machine, from one step: peak memory {human_bytes(cost.peak_bytes)}, "
        f"{training if cost.trainings > 1 else f'training {training}'}{processes}{vision}, "
        f"scoring base and tuned {human_time(cost.scoring_seconds)}",
    )
