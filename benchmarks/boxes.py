"""Do the boxes of values lie on the right line? Against the transcripts of real receipts; and what boxes cost.

    python benchmarks/boxes.py FOLDER RUN...       # runs on receipts with `ocr` quads in FOLDER/metadata.jsonl
    python benchmarks/boxes.py FOLDER RUN --split train --files 56

The tuned model of a run reads the receipts of a split that it was not trained on, greedily. A value counts where it is
right (equal to its label in letters and digits, or the same date or amount) and stands in the transcript. `first`: the
middle of its first box lies inside a line that holds it, or a part of it where it takes several lines; `all`: those of
all its boxes do; `supported`: it has a box. A value without a box counts as wrong. Values that are printed but are not
the label are reported apart. Nothing in the product was fitted to these receipts; constants were looked at on receipts
of the training part. `cpu_of_boxes` is the CPU time of reading with boxes, as a multiple of that without. Writes
results/boxes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mllm_tailor.core.sample import Location, Media, Prediction, Sample
from mllm_tailor.generation import predict
from mllm_tailor.generation.locate import Locator
from mllm_tailor.media.open import image_size
from mllm_tailor.run.new_files import predictor_of_run
from mllm_tailor.tasks import field_kinds
from mllm_tailor.tasks.printed import letters_and_digits, same_meaning

HERE = Path(__file__).resolve().parent
LONGEST = 8  # lines of one value

Quad = tuple[float, float, float, float]


def lines_with(value: str, kind: str, lines: Sequence[str]) -> list[int]:
    """Indices of the lines that hold a value; of the shortest runs of lines that do where it takes several."""
    wanted = letters_and_digits(value)
    if not wanted:
        return []
    single = [
        index
        for index, line in enumerate(lines)
        if wanted in letters_and_digits(line) or same_meaning(value, kind, line)
    ]
    return single or sorted(
        {index for run in _runs(wanted, [letters_and_digits(line) for line in lines]) for index in run}
    )


def _runs(wanted: str, lines: Sequence[str]) -> Iterator[range]:
    for start in range(len(lines)):
        for end in range(start + 2, min(len(lines), start + LONGEST) + 1):
            if wanted in "".join(lines[start:end]) and wanted not in "".join(lines[start + 1 : end]):
                yield range(start, end)
                break


def is_right(value: str, label: str, kind: str) -> bool:
    """Whether a value is its label, in another spelling at most."""
    return letters_and_digits(value) == letters_and_digits(label) or same_meaning(value, kind, label)


def inside(location: Location, quads: Sequence[Quad], size: tuple[int, int]) -> bool:
    """Whether the middle of a box lies in one of the quads (pixels)."""
    left, top, right, bottom = location.box
    x, y = (left + right) / 2000 * size[0], (top + bottom) / 2000 * size[1]
    return any(quad[0] <= x <= quad[2] and quad[1] <= y <= quad[3] for quad in quads)


def judged(
    row: dict[str, Any], prediction: Prediction, kinds: dict[str, str], size: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Every written value of a receipt: is it right, is it printed, does its box lie on its line?"""
    texts = [line["text"] for line in row["ocr"]]
    for name, label in row["entities"].items():
        value = str(prediction.fields.get(name) or "")
        if not value:
            continue
        found = lines_with(value, kinds.get(name, "string"), texts)
        quads = [
            (min(q[0::2]), min(q[1::2]), max(q[0::2]), max(q[1::2])) for q in (row["ocr"][i]["quad"] for i in found)
        ]
        locations = (prediction.where or {}).get(name, ())
        hits = [inside(location, quads, size) for location in locations]
        yield {
            "field": name,
            "right": is_right(value, label, kinds.get(name, "string")),
            "printed": bool(quads),
            "supported": bool(locations),
            "first": bool(hits and hits[0]),
            "all": bool(hits) and all(hits),
        }


def learned_ids(run: Path) -> set[str]:
    """Ids of the receipts that the run was trained on."""
    file = run / "data_fingerprints.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {row["id"] for row in rows if row.get("split") == "train" and "id" in row}


def summary(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Percentages of a list of judged values."""
    count = len(values)
    shares = (
        {name: round(100 * sum(value[name] for value in values) / count, 1) for name in ("first", "all", "supported")}
        if count
        else {}
    )
    return {"values": count, **shares}


def by_field(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same for all values and each field."""
    names = dict.fromkeys(value["field"] for value in values)
    return {"all": summary(values)} | {name: summary([v for v in values if v["field"] == name]) for name in names}


class Clock:
    """CPU seconds of its thread that a method takes, summed over calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def timed(self) -> Callable[..., Any]:
        """The method, timed."""

        def call(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return self.function(*arguments)
            finally:
                self.seconds += time.thread_time() - started

        return call


def measure(run: Path, folder: Path, split: str, files: int) -> dict[str, Any]:
    """The figures of one run."""
    learned = learned_ids(run)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == split and row["id"] not in learned]
    rows = rows[:: max(1, len(rows) // files)][:files]
    predictor = predictor_of_run(run)
    model, task = predictor.open(), predictor.run.task
    kinds = field_kinds(task)
    settings = predictor.run.recipe.predict.model_copy(update={"num_beams": 1, "boxes": True})
    samples = [Sample(row["id"], (Media("image", folder / row["file_name"]),)) for row in rows]

    located = Clock(Locator.locate)
    Locator.locate = located.timed()  # type: ignore[method-assign]
    started = time.process_time()
    predictions = predict(model, task, samples, settings)
    seconds = time.process_time() - started
    Locator.locate = located.function  # type: ignore[method-assign]
    values = [
        value
        for row, sample, prediction in zip(rows, samples, predictions, strict=True)
        for value in judged(row, prediction, kinds, image_size(sample.media[0]))
    ]
    right = [value for value in values if value["right"]]
    return {
        "split": split,
        "receipts": len(rows),
        "right": by_field([value for value in right if value["printed"]]),
        "right_not_in_transcript": sum(not value["printed"] for value in right),
        "printed": by_field([value for value in values if value["printed"]]),
        "not_printed": summary([value for value in values if not value["printed"]]),
        "cpu_of_boxes": round(seconds / (seconds - located.seconds), 3),
        "model": {"path": predictor.run.model.path, "name": predictor.run.name, "training": _training(run)},
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--files", type=int, default=1000, help="at most so many receipts, spread evenly")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "boxes.json")
    options = parser.parse_args()
    results = [measure(run, options.folder, options.split, options.files) for run in options.runs]
    options.out.write_text(json.dumps({"runs": results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def _training(run: Path) -> dict[str, Any]:
    row = json.loads((run / "training.json").read_text())
    return {name: row[name] for name in ("steps", "epochs", "samples_per_second") if name in row}


if __name__ == "__main__":
    main()
