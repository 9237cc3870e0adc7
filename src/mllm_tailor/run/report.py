"""Everything a report shows, gathered from a run folder; the drawing is scoring's."""

from __future__ import annotations

import datetime
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import ImageDraw

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import human_bytes, human_time, read_json, read_jsonl
from mllm_tailor.core.progress import console
from mllm_tailor.core.sample import Sample
from mllm_tailor.media.open import open_image
from mllm_tailor.media.video import film_strip, read_frames
from mllm_tailor.reporting import Cost, Curves, LedgerLine, ReportData, choose, write_report
from mllm_tailor.reporting.tables import confusion_table, gain_table, score_table
from mllm_tailor.run.dataset import Job
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.run.scores import RunScores
from mllm_tailor.scoring.confusion import Confusion
from mllm_tailor.scoring.metrics.iou import is_box

STRIP_FRAMES = 4  # of a clip
LABEL_COLOR, REPLY_COLOR = "#1c8f6b", "#d0402b"  # of boxes
PICTURE_SIDE = 900  # pixels; large enough to read a receipt on a screen
NOTES = {
    "train": "learned from",
    "aloud": "training samples learned once more, as a reading task",
    "mixed": "of other sources, learned from beside the training samples",
    "dev": "kept from learning, to choose the best epoch",
    "held_out": "scored; never learned from",
    "excluded": "took no part",
}


def write_run_report(run: RunFolder, job: Job, scores: RunScores, training: Mapping[str, Any]) -> None:
    """Write report.html and show the same in the terminal."""
    data = ReportData(
        name=job.recipe.name,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        facts=_facts(job, training),
        metric=scores.metrics[0],
        mode=scores.mode,
        systems=scores.systems,
        gains=scores.gains,
        labels=scores.labels,
        predictions=scores.predictions,
        questions=_questions(job),
        sample_groups=[sample.group for sample in job.held_out],
        groups=scores.groups,
        breakdowns=scores.breakdowns,
        breakdown_metrics=job.recipe.score,
        classes=scores.classes,
        images=_pictures(job, scores),
        curves=_curves(run.path / "log.jsonl", scores.metrics[0], training.get("best_step")),
        ledger=_ledger(run.ledger),
        costs=_costs(run, scores, training),
        recipe=run.recipe_file.read_text(encoding="utf-8"),
        environment=read_json(run.environment),
    )
    write_report(data, run.report)
    _show(run, scores)


def _show(run: RunFolder, scores: RunScores) -> None:
    headline = scores.metrics[0]
    shown = {name: found for name, found in scores.gains.items() if name in scores.metrics}
    console.print(gain_table(shown, f"Gain on {len(scores.ids)} held-out samples ({scores.mode})"))
    console.print(gain_table(scores.gains[headline].by_field, f"{headline}, by field"))
    console.print(score_table(scores.systems, "Every system on the same samples"))
    for column, parts in scores.breakdowns.items():
        tuned = scores.systems[f"tuned_{scores.mode}"]
        apart = {f"{value} ({len(places)})": tuned.subset(places) for value, places in parts.items()}
        console.print(score_table(apart, f"The tuned model by {column}"))
    if scores.classes:
        console.print(confusion_table(Confusion.of(scores.labels, scores.tuned_predictions, scores.classes)))
    console.print(f"Report: {run.report}")


def _facts(job: Job, training: Mapping[str, Any]) -> dict[str, str]:
    trained = sum(training["trained_by_part"].values())
    everyone = (*job.train, *job.held_out, *(sample for source in job.mixed for sample in source.samples))
    drawn = sum(bool(sample.extra.get("drawn")) for sample in everyone)
    stand_ins = {"pixels": f"drawn stand-ins in {drawn} of {len(everyone)} samples, no photographs or films"}
    return {
        "model": job.recipe.model.path,
        "data": f"{Path(job.recipe.data.train).name} ({job.dataset.layout})",
        "method": str(job.recipe.method["name"]),
        "trained weights": f"{trained:,} of {training['weights']:,}",
        "training samples": str(len(job.train)),
        "epochs": f"{training['epochs']:.3g}",
    } | (stand_ins if drawn else {})


def _questions(job: Job) -> list[str]:
    """The questions, where samples have their own."""
    asked = [job.task.phrase(sample).prompt for sample in job.held_out]
    return asked if len(set(asked)) > 1 else []


def _curves(log: Path, metric: str, best: int | None) -> Curves:
    rows = [row for _, row in read_jsonl(log)] if log.exists() else []
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    dev = [(row["step"], row["dev"][metric]) for row in rows if metric in row.get("dev", {})]
    return Curves(losses, dev, best)


def _ledger(path: Path) -> list[LedgerLine]:
    """Samples by part; excluded ones by reason; shrunk pictures by name."""
    rows = [row for _, row in read_jsonl(path)]
    parts = Counter(row["part"] for row in rows if row["part"] != "excluded")
    lines = [LedgerLine(part.replace("_", " "), count, NOTES[part]) for part, count in parts.items()]
    reasons = Counter(row["reason"] for row in rows if row["part"] == "excluded")
    lines += [LedgerLine("excluded", count, reason) for reason, count in reasons.items()]
    shrunk = [row["scale"] for row in rows if (row.get("scale") or 1) < 1]
    notes = Counter(row["note"] for row in rows if "note" in row)
    lines += [LedgerLine("to note", count, note) for note, count in notes.items()]
    if shrunk:
        note = f"seen smaller than stored, the smallest at {min(shrunk):.0%} of its width and height"
        lines.append(LedgerLine("shrunk", len(shrunk), note))
    return lines


def _costs(run: RunFolder, scores: RunScores, training: Mapping[str, Any]) -> list[Cost]:
    estimate = read_json(run.forecast)
    reading = sum(prediction.seconds for prediction in scores.tuned_predictions)
    return [
        Cost("training", human_time(training["seconds"]), human_time(estimate["training_seconds"])),
        Cost("peak memory", human_bytes(training["peak_bytes"]), human_bytes(estimate["peak_bytes"])),
        Cost("training speed", f"{training['samples_per_second']:.2f} samples/s"),
        Cost("reading speed, tuned", f"{len(scores.ids) / max(reading, 1e-9):.2f} samples/s"),
        Cost("adapter on disk", human_bytes(sum(file.stat().st_size for file in _files(run.adapter)))),
    ]


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _pictures(job: Job, scores: RunScores) -> dict[str, bytes]:
    """Small pictures of the cases the report shows; a sample without one is shown without."""
    base, tuned = (scores.systems[f"{who}_{scores.mode}"] for who in ("base", "tuned"))
    places = {place for chosen in choose(base, tuned, scores.metrics[0]).values() for place in chosen}
    found = {job.held_out[place].id: _picture(job.held_out[place], _boxes(scores, place)) for place in places}
    return {identifier: picture for identifier, picture in found.items() if picture}


def _boxes(scores: RunScores, place: int) -> dict[str, Any]:
    """Boxes to draw, by color: the true one and the tuned model's, where the answer is a box."""
    found = {
        LABEL_COLOR: scores.labels[place].get("box"),
        REPLY_COLOR: scores.tuned_predictions[place].fields.get("box"),
    }
    return {color: box for color, box in found.items() if is_box(box)}


def _picture(sample: Sample, boxes: Mapping[str, Any]) -> bytes | None:
    media = next((media for media in sample.media if media.kind != "audio"), None)
    if media is None:
        return None
    try:
        image = open_image(media) if media.kind == "image" else film_strip(read_frames(media, STRIP_FRAMES))
    except DataError as error:
        console.print(f"[yellow]no picture in the report:[/] {error}")
        return None
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    for color, box in boxes.items():  # thousandths of width and height
        corners = [value * size / 1000 for value, size in zip(box, image.size * 2, strict=True)]
        ImageDraw.Draw(image).rectangle(corners, outline=color, width=3)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=70)
    return stream.getvalue()
