"""Everything a report shows, gathered from a run folder alone."""

from __future__ import annotations

import datetime
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import ImageDraw

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import human_bytes, human_time, read_json, read_jsonl
from mllm_tailor.core.regions import IMAGE
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.media.open import open_image
from mllm_tailor.media.video import film_strip, read_frames
from mllm_tailor.reporting import Cost, Curves, LedgerLine, ReportData, choose, write_report
from mllm_tailor.reporting.report_data import WATCHED, ConfidenceData
from mllm_tailor.reporting.wrong_values import find_wrong_values
from mllm_tailor.run.data_record import HeldOut
from mllm_tailor.run.environment import read_environment
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.run.scores import RunScores
from mllm_tailor.scoring.errors import kind_of_error
from mllm_tailor.scoring.metrics.iou import is_box
from mllm_tailor.scoring.metrics.mask_iou import are_outlines
from mllm_tailor.scoring.systems import System

logger = logging.getLogger(__name__)

STRIP_FRAMES = 4  # of a video
LABEL_COLOR, REPLY_COLOR = "#1c8f6b", "#d0402b"  # of boxes
NO_REGIONS: Mapping[str, list[list[list[float]]]] = MappingProxyType({})
IMAGES_BYTES = 4 * 2**20  # of all images in a report, beside those of the cases
PICTURE_SIDE = 900  # pixels; large enough to read a receipt on a screen
NOTES = {
    "train": "learned from",
    "transcription": "training samples learned once more, as a reading task",
    "mixed": "of other sources, learned from beside the training samples",
    "dev": "kept from learning, to choose the best epoch",
    "held_out": "scored; never learned from",
    "excluded": "took no part",
}


def write_run_report(
    folder: RunFolder, run: ResolvedRun, scores: RunScores, training: Mapping[str, Any], data: Mapping[str, Any]
) -> None:
    """Write report.html; `training` and `data` are what training.json and data.json hold."""
    ledger = [row for _, row in read_jsonl(folder.ledger)]
    content = ReportData(
        name=run.name,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        facts=_facts(run, ledger, training, data) | _fold_facts(scores) | _box_facts(scores),
        metric=scores.metrics[0],
        mode=scores.mode,
        systems=scores.systems,
        gains=scores.gains,
        labels=scores.held_out.labels,
        predictions=scores.predictions,
        questions=_questions(scores.held_out),
        sample_groups=list(scores.held_out.groups),
        groups=scores.groups,
        breakdowns=scores.breakdowns,
        breakdown_metrics=run.recipe.score,
        classes=scores.classes,
        curves=_curves(folder.log, scores.metrics[0], training.get("best_step")),
        ledger=_ledger(ledger),
        costs=_costs(folder, scores, training),
        confidence=_confidence(scores),
        folds=scores.folds,
        recipe=folder.recipe_file.read_text(encoding="utf-8"),
        environment=read_environment(folder.environment),
    )
    wrong = dict.fromkeys(row.id for row in find_wrong_values(content).rows)
    write_report(replace(content, images=_images(scores, wrong)), folder.report)


def _facts(
    run: ResolvedRun, ledger: Sequence[Mapping[str, Any]], training: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, str]:
    trained = sum(training["trained_by_part"].values())
    drawn, everyone = data["drawn"], data["samples"]
    stand_ins = {"pixels": f"drawn stand-ins in {drawn} of {everyone} samples, no photographs or films"}
    return {
        "model": run.model.path,
        "data": f"{Path(run.recipe.data.train).name} ({data['layout']})",
        "method": str(run.recipe.method["name"]),
        "trained weights": f"{trained:,} of {training['weights']:,}",
        "training samples": str(sum(row["part"] == "train" for row in ledger)),
        "epochs": f"{training['epochs']:.3g}",
    } | (stand_ins if drawn else {})


def _fold_facts(scores: RunScores) -> dict[str, str]:
    if scores.folds == 1:
        return {}
    return {
        "scores": f"of {scores.folds} models: each sample was scored once, by the model of the other folds; the tuned "
        "model is trained on all samples"
    }


def _box_facts(scores: RunScores) -> dict[str, str]:
    if not any(prediction.where for prediction in scores.tuned_predictions):
        return {}
    return {
        "boxes in images": "where the tuned model's values stand: green where a value is right, red where it is not"
    }


def _confidence(scores: RunScores) -> ConfidenceData:
    fitted, check = scores.calibration, scores.confidence
    if check is None:
        return ConfidenceData(reason=fitted.reason)
    where = "dev samples" if fitted.source == "dev" else "samples"
    units = "" if fitted.units == fitted.samples else f" in {fitted.units} groups"
    return ConfidenceData(
        parts=check.parts,
        promise=fitted.promise,
        fitted_on=f"{fitted.values:,} values of {fitted.samples:,} {where}{units}",
        cross_fitted=check.cross_fitted,
    )


def _questions(held_out: HeldOut) -> list[str]:
    """The questions, where samples have their own."""
    return list(held_out.questions) if len(set(held_out.questions)) > 1 else []


def _curves(log: Path, metric: str, best: int | None) -> Curves:
    rows = [row for _, row in read_jsonl(log)] if log.exists() else []
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    dev = [(row["step"], row["dev"][metric]) for row in rows if metric in row.get("dev", {})]
    watched = {
        name: [(row["step"], row[name]) for row in rows if name in row]
        for name in dict.fromkeys(name for row in rows for name in row if name in WATCHED or name.startswith("watch/"))
    }
    return Curves(losses, dev, best, watched)


def _ledger(rows: Sequence[Mapping[str, Any]]) -> list[LedgerLine]:
    """Samples by split; excluded ones by reason; how many images are shrunk."""
    splits = Counter(row["part"] for row in rows if row["part"] != "excluded")
    lines = [LedgerLine(split.replace("_", " "), count, NOTES[split]) for split, count in splits.items()]
    reasons = Counter(row["reason"] for row in rows if row["part"] == "excluded")
    lines += [LedgerLine("excluded", count, reason) for reason, count in reasons.items()]
    shrunk = [row["scale"] for row in rows if (row.get("scale") or 1) < 1]
    notes = Counter(row["note"] for row in rows if "note" in row)
    lines += [LedgerLine("to note", count, note) for note, count in notes.items()]
    if shrunk:
        note = f"seen smaller than stored, the smallest at {min(shrunk):.0%} of its width and height"
        lines.append(LedgerLine("shrunk", len(shrunk), note))
    return lines


def _costs(folder: RunFolder, scores: RunScores, training: Mapping[str, Any]) -> list[Cost]:
    estimate = read_json(folder.cost_estimate)
    reading = sum(prediction.seconds for prediction in scores.tuned_predictions)
    return [
        Cost("training", human_time(training["seconds"]), human_time(estimate["training_seconds"])),
        Cost("peak memory", human_bytes(training["peak_bytes"]), human_bytes(estimate["peak_bytes"])),
        Cost("training speed", f"{training['samples_per_second']:.2f} samples/s"),
        Cost("reading speed, tuned", f"{len(scores.held_out.ids) / max(reading, 1e-9):.2f} samples/s"),
        Cost("adapter on disk", human_bytes(sum(file.stat().st_size for file in _files(folder.adapter)))),
    ]


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _images(scores: RunScores, wrong: Iterable[str]) -> dict[str, bytes]:
    """Small images of the cases that the report shows and, while there is room, of the samples with `wrong` values.

    A sample without an image is shown without.
    """
    base, tuned = (scores.systems[System(state, scores.mode).key] for state in ("base", "tuned"))
    cases = [index for chosen in choose(base, tuned, scores.metrics[0]).values() for index in chosen]
    position = {sample.id: index for index, sample in enumerate(scores.held_out.samples)}
    images: dict[str, bytes] = {}
    room = IMAGES_BYTES
    for number, index in enumerate(dict.fromkeys((*cases, *(position[name] for name in wrong)))):
        if number >= len(cases) and room <= 0:
            break
        sample = scores.held_out.samples[index]
        if jpeg := picture(sample, _regions(scores, index), _image_index(scores.held_out.labels[index])):
            images[sample.id] = jpeg
            room -= len(jpeg)
    return images


def _regions(scores: RunScores, index: int) -> dict[str, list[list[list[float]]]]:
    """Outlines to draw, by color: the true ones and the tuned model's, where the answer is a box or an outline.

    Else where the tuned model's values stand, by whether they are right, where the run located them.
    """
    if scores.tuned_predictions[index].where:
        return value_boxes(scores.held_out.labels[index], scores.tuned_predictions[index])
    answers = {LABEL_COLOR: scores.held_out.labels[index], REPLY_COLOR: scores.tuned_predictions[index].fields}
    shown = _image_index(scores.held_out.labels[index])
    drawn = {color: fields for color, fields in answers.items() if shown in (None, fields.get(IMAGE, shown))}
    return {color: outlines for color, fields in drawn.items() if (outlines := _outlines(fields))}


def value_boxes(labels: Mapping[str, Any], prediction: Prediction) -> dict[str, list[list[list[float]]]]:
    """Outlines of where a reply's values stand on the first page: right ones in one color, others in another."""
    boxes: dict[str, list[list[list[float]]]] = {}
    for path, locations in (prediction.where or {}).items():
        name = next((name for name in labels if path == name or path.startswith(f"{name}.")), "")
        right = kind_of_error(name, labels, prediction.fields) == "right"
        for left, top, right_edge, bottom in (location.box for location in locations if location.page == 0):
            corners: list[list[float]] = [[left, top], [right_edge, top], [right_edge, bottom], [left, bottom]]
            boxes.setdefault(LABEL_COLOR if right else REPLY_COLOR, []).append(corners)
    return boxes


def _outlines(fields: Mapping[str, Any]) -> list[list[list[float]]]:
    """The outlines of an answer, those of a box among them; empty where it has none."""
    box, polygon = fields.get("box"), fields.get("polygon")
    if box is not None and is_box(box):
        left, top, right, bottom = box
        return [[[left, top], [right, top], [right, bottom], [left, bottom]]]
    return polygon if polygon is not None and are_outlines(polygon) else []


def _image_index(fields: Mapping[str, Any]) -> int | None:
    """Which of several images a box or an outline is of; None where the fields are no region or state none."""
    index = fields.get(IMAGE)
    return index if isinstance(index, int) and ("box" in fields or "polygon" in fields) else None


def picture(
    sample: Sample, regions: Mapping[str, list[list[list[float]]]] = NO_REGIONS, image_index: int | None = None
) -> bytes | None:
    """A small JPEG of a sample's first image or video, with outlines by color; None where it has none.

    `image_index` is the image that the outlines are of, where there are several.
    """
    shown = [media for media in sample.media if media.kind != "audio"]
    images = [media for media in shown if media.kind == "image"]
    media = next(iter(images[image_index or 0 :] if image_index is not None else shown), None)
    if media is None:
        return None
    try:
        image = open_image(media) if media.kind == "image" else film_strip(read_frames(media, STRIP_FRAMES))
    except DataError as error:
        logger.warning("no image in the report: %s", error)
        return None
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    for color, outlines in regions.items():
        for outline in outlines:  # thousandths of width and height
            corners = [(x * image.width / 1000, y * image.height / 1000) for x, y in outline]
            ImageDraw.Draw(image).polygon(corners, outline=color, width=3)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=70)
    return stream.getvalue()
