"""What do several framings of each image add to a tuned run, and what do they cost?

    python benchmarks/framings.py RUN                    # the dev split, 1 to 4 framings
    python benchmarks/framings.py RUN --split held_out --most 2

The tuned model of a finished run reads the receipts of a split that it was not trained on, with the run's own settings.
The first framing is the image itself: its readings are those that the run has stored. Every further framing is read
once, and the readings of the first 1, 2, 3 … are put to a vote as `predict.framings` does. Readings are kept under
.benchmarks/framings, so that an interrupted call continues. `gain` is the difference to one framing, paired by sample,
with the half width of its 95 % interval; `cpu` the CPU seconds of a few samples in so many framings, as a multiple of
one. The framings and their order are chosen on a dev split alone. Writes results/framings.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mllm_tailor.core.io import fingerprint
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation.voting import vote
from mllm_tailor.media.framing import FRAMINGS
from mllm_tailor.run.calibrate import DEV
from mllm_tailor.run.data_record import HeldOut, read_labelled
from mllm_tailor.run.new_files import Predict, Predictor, predictor_of_run
from mllm_tailor.run.run_dir import RunFolder, open_run, read_predictions
from mllm_tailor.scoring.metrics import METRICS
from mllm_tailor.tasks import Task, field_kinds

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / ".benchmarks" / "framings"
METRIC_NAMES = ("exact", "fuzzy")
CHUNK = 8  # samples read before their readings are kept
TIMED = 8  # samples whose CPU seconds are compared


def in_framing(sample: Sample, index: int) -> Sample:
    """The sample with every image in one framing."""
    return replace(
        sample, media=tuple(replace(item, framing=index) if item.kind == "image" else item for item in sample.media)
    )


class Reader:
    """Reads samples in one framing, and keeps the readings."""

    def __init__(self, folder: RunFolder, predictor: Predictor, closing: ExitStack) -> None:
        self.folder, self.predictor, self.closing = folder, predictor, closing

    @cached_property
    def predict(self) -> Predict:
        """The model, opened when there is something to read."""
        return self.closing.enter_context(self.predictor.opened())

    def readings(self, samples: Sequence[Sample], index: int) -> dict[str, Prediction]:
        """Predictions by id."""
        settings = self.folder.recipe().predict.model_dump(mode="json")
        path = KEPT / f"{fingerprint(str(self.folder.path.resolve()), settings, asdict(FRAMINGS[index]))[:16]}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        rows = [Prediction.from_row(json.loads(line)) for line in path.read_text().splitlines()]
        known = {row.id: row for row in rows}
        missing = [in_framing(sample, index) for sample in samples if sample.id not in known]
        for start in range(0, len(missing), CHUNK):
            made = self.predict(missing[start : start + CHUNK], lambda _: None)
            with path.open("a") as file:
                file.writelines(json.dumps(prediction.row()) + "\n" for prediction in made)
            known |= {prediction.id: prediction for prediction in made}
        return known

    def seconds(self, samples: Sequence[Sample], index: int) -> float:
        """CPU seconds of reading samples in a framing."""
        framed = [in_framing(sample, index) for sample in samples]
        start = time.process_time()
        self.predict(framed, lambda _: None)
        return time.process_time() - start


def scores(labelled: HeldOut, predictions: Mapping[str, Prediction], task: Task) -> dict[str, np.ndarray]:
    """Percent by metric and field, an entry for each sample; all fields alike under the metric's name."""
    kinds, result = field_kinds(task), {}
    for metric_name in METRIC_NAMES:
        metric = METRICS.load(metric_name)
        table = np.array(
            [
                [
                    100 * metric.field(labels, predictions[sample_id], field, kinds).numerator
                    for field in task.field_names
                ]
                for sample_id, labels in zip(labelled.ids, labelled.labels, strict=True)
            ]
        )
        result |= {f"{metric_name} {field}": table[:, column] for column, field in enumerate(task.field_names)}
        result[metric_name] = table.mean(1)
    return result


def compared(now: dict[str, np.ndarray], single: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Score and paired gain of every figure."""
    rows = {}
    for name, values in now.items():
        gains = values - single[name]
        half = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains))
        numbers = {"score": values.mean(), "gain": gains.mean(), "half_width": half}
        rows[name] = {key: round(float(number), 2) for key, number in numbers.items()}
    return rows


def measure(run: Path, split: str, most: int, count: int | None, *, timed: bool) -> dict[str, Any]:
    """The figures of a run on one split."""
    folder, predictor = open_run(run), predictor_of_run(run)
    task = predictor.run.task
    stored = DEV if split == "dev" else predictor.run.system("tuned")
    labelled = read_labelled(folder.dev if split == "dev" else folder.held_out)
    order = sorted(range(len(labelled.samples)), key=lambda index: labelled.samples[index].id)[:count]
    labelled = HeldOut(*(tuple(part[index] for index in order) for part in vars(labelled).values()))
    with ExitStack() as closing:
        reader = Reader(folder, predictor, closing)
        framings = [{prediction.id: prediction for prediction in read_predictions(folder.predictions(stored))}]
        framings += [reader.readings(labelled.samples, index) for index in range(1, most)]
        cpu = _cpu(reader.seconds, labelled.samples[:TIMED], most) if timed else []
    votes = [
        {
            name: vote([readings[name] for readings in framings[: number + 1]], task.field_names, field_kinds(task))
            for name in labelled.ids
        }
        for number in range(most)
    ]
    single = scores(labelled, votes[0], task)
    return {
        "run": predictor.run.name,
        "split": split,
        "samples": len(labelled.samples),
        "num_beams": predictor.run.recipe.predict.num_beams,
        "framings": [asdict(framing) for framing in FRAMINGS[:most]],
        "by_count": {
            str(number + 1): compared(scores(labelled, votes[number], task), single) for number in range(most)
        },
        "cpu": cpu,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
    }


def _cpu(seconds: Callable[[Sequence[Sample], int], float], samples: Sequence[Sample], most: int) -> list[float]:
    each = [seconds(samples, index) for index in range(most)]
    return [round(sum(each[: number + 1]) / each[0], 2) for number in range(most)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", choices=("dev", "held_out"), default="dev")
    parser.add_argument("--most", type=int, default=4, help="framings at most")
    parser.add_argument("--samples", type=int, help="the first so many samples by id")
    parser.add_argument("--no-times", action="store_true", help="do not read samples again for their CPU seconds")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "framings.json")
    options = parser.parse_args()
    row = measure(options.run, options.split, options.most, options.samples, timed=not options.no_times)
    rows = json.loads(options.out.read_text())["runs"] if options.out.is_file() else []
    rows = [other for other in rows if (other["run"], other["split"]) != (row["run"], row["split"])]
    options.out.write_text(json.dumps({"runs": [*rows, row]}, indent=1) + "\n")
    print(json.dumps(row["by_count"], indent=1), row["cpu"])


if __name__ == "__main__":
    main()
