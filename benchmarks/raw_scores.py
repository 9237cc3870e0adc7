"""Raw scores of readings, judged: what `benchmarks/calibration.py` measures. No text of a document is stored.

    python benchmarks/raw_scores.py RECIPE FOLDER OUT READINGS...  # readings that exist, of any part of a folder
    python benchmarks/raw_scores.py --drawn WORK                   # draws receipts, tunes, reads: 12 minutes, resumable

READINGS are files of predictions by models that were not trained on what they read, such as the folds of
`benchmarks/audit.py FOLDER --folds 2` (WORK/audits/…-audit/fold-*/predictions/tuned_constrained.jsonl); a file that is
still being written is taken as far as it goes. Labels and groups are those of FOLDER, read with RECIPE. OUT has one row
for each reading: `id`, `group` (a number), `dev` (whether the recipe holds it out), and for each value its raw scores
and whether it is `right`.

--drawn draws 280 receipts of five shop chains (45 branches), tunes the embedded model on each half of the branches for
three epochs by the settings of `tailor demo`, and has each half read by the model of the other one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_tailor.core.io import read_jsonl, write_atomic, write_jsonl
from mllm_tailor.core.sample import Prediction
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.audit import AuditOptions, audit
from mllm_tailor.run.cross_fit import CrossFit
from mllm_tailor.run.dataset import read_splits
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.scoring.judged import judge
from mllm_tailor.synthetic.folder import draw_folder
from mllm_tailor.tasks import field_kinds

RESULTS = Path(__file__).parent / "results"
METRIC = "normalised_exact"
CHAINS, RECEIPTS = 5, 56  # of each chain
DRAWN = """# The settings of `tailor demo` for half as many epochs, on receipts of several chains.
name: drawn
model: embedded
data:
  train: {data}
  held_out: {{fraction: 0.2, group_by: group}}
task:
  extract: {{company: string, date: date, address: string, total: amount}}
method: {{name: qlora, rank: 32, alpha: 64, parts: [language]}}
train: {{epochs: 3, batch_size: 8, learning_rate: 1.0e-3, processes: 1}}
predict: {{max_new_tokens: 256}}
output: {output}
"""


def rows(run: ResolvedRun, predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    """A row for each prediction of a labelled sample of the run's data; groups are numbered."""
    _, train, held_out, _ = read_splits(run, [])
    samples = {sample.id: sample for sample in (*train, *held_out)}
    dev = {sample.id for sample in held_out}
    groups = dict.fromkeys(sample.group or sample.id for sample in samples.values())
    numbers = {group: number for number, group in enumerate(groups)}
    for prediction in predictions:
        sample = samples[prediction.id]
        values = judge([run.task.labels(sample)], [prediction], [0], METRIC, field_kinds(run.task))
        yield {
            "id": sample.id,
            "group": numbers[sample.group or sample.id],
            "dev": sample.id in dev,
            "values": {value.path: {**value.scores, "right": value.right} for value in values},
        }


def read_files(files: Sequence[Path]) -> list[Prediction]:
    """All predictions; a last line that is not finished is left out."""
    predictions = []
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        predictions += [Prediction.from_row(json.loads(line)) for line in lines if line.endswith("\n")]
    return predictions


def draw(folder: Path) -> None:
    """Receipts of several chains in one folder, each with its branch as its group."""
    drawn: list[Mapping[str, Any]] = []
    for seed in range(CHAINS):
        draw_folder(folder, RECEIPTS, 0, seed)
        chain = [row for _, row in read_jsonl(folder / "metadata.jsonl")]
        drawn += [row | {"group": f"chain {seed} {row['group']}"} for row in chain]
    write_jsonl(folder / "metadata.jsonl", drawn)


def read_drawn(work: Path) -> tuple[ResolvedRun, list[Prediction]]:
    """Cross-fitted readings of drawn receipts."""
    if not (work / "drawn.yaml").is_file():
        draw(work / "receipts")
    write_atomic(work / "drawn.yaml", DRAWN.format(data=work / "receipts", output=work / "runs"))
    run = resolve(read_recipe(work / "drawn.yaml"))
    result = audit(run, AuditOptions(cross_fit=CrossFit(2, 120.0), decode=False))
    return run, [prediction for predictions in result.readings.values() for prediction in predictions]


def main() -> None:
    """Judge and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("readings", type=Path, nargs="*")
    parser.add_argument("--drawn", type=Path, metavar="WORK")
    arguments = parser.parse_args()
    if arguments.drawn:
        (run, predictions), out = read_drawn(arguments.drawn), RESULTS / "raw_drawn.jsonl"
    elif arguments.readings:
        run = resolve(read_recipe(arguments.recipe, [f"data.train={arguments.folder}"]))
        predictions, out = read_files(arguments.readings), arguments.out
    else:
        parser.error("name RECIPE FOLDER OUT READINGS..., or --drawn WORK")
    write_jsonl(out, rows(run, predictions))
    print(f"{len(predictions)} readings in {out}")


if __name__ == "__main__":
    main()
