"""Do calibrated confidences mean what they say, and do promises hold? On stored raw predictions of real receipts.

    python benchmarks/calibration.py                          # from the stored predictions: minutes, no model
    python benchmarks/calibration.py --check benchmarks/results/raw_real.jsonl

A file of raw predictions has one row for each receipt that the model was not trained on: its id, its group (company),
whether it is of the data's own dev part, and for each value its raw scores and whether it is right. `raw_scores.py`
writes them; the texts of the documents are not stored. All were read constrained, with one beam unless said otherwise.

raw_real.jsonl   161 receipts of ICDAR 2019 SROIE (69 of them the dev part of the folder) by the embedded model after 18
                 steps of four receipts (Muon, 5e-4, all weights but the vision tower's): a weak model, right in 27 %
                 of the values, of which promises can accept few.
raw_tuned.jsonl  626 receipts of the two folds of `audit.py --folds 2`, by models trained
                 for 38 minutes on the other half (159 or 183 steps of four): 29 % of the values are right.
raw_recipe.jsonl 152 receipts by one model that `recipes/sroie.yaml` tuned with `data.dev=0.15 accept.right=0.95` for
                 88 minutes of one core (382 of its 890 steps, 473 receipts): its 83 dev receipts, and the 69 held out.
                 51 % of the values are right; read with eight beams.
raw_drawn.jsonl  one fold (141) of 280 drawn receipts of five chains, by a model tuned on the other branches
                 (`raw_scores.py --drawn`): right in 38 % of the values.

Scores of a model that reads well are also simulated (280 receipts of 90 companies).

Two questions are answered for each file, with `benchmarks/results/calibration.json` as the result.

1. As a run does it: the calibration is fitted on the receipts outside the dev part, the dev part checks it.
2. Over many random halves (by group, and by receipt), fitted on one half and checked on the other: the mean calibration
   error and AUROC, and for promises of 90, 95 and 99 % how often one is given, how much it accepts, what share of the
   accepted values is right in all halves together, and in how many halves fewer are right than promised.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import read_jsonl, write_json
from mllm_tailor.scoring.accept import choose_threshold
from mllm_tailor.scoring.calibration import cross_fitted, fit
from mllm_tailor.scoring.judged import JudgedValue
from mllm_tailor.scoring.reliability import accepted_by, calibration_error, count_accepted, measure, ranking

RESULTS = Path(__file__).parent / "results"
FILES = {name: RESULTS / f"raw_{name}.jsonl" for name in ("real", "tuned", "recipe", "drawn")}
PROMISES = (0.90, 0.95, 0.99)
SIMULATED = {"company": 1.0, "date": 3.5, "address": 0.5, "total": 3.0}  # mean log-odds of a right value


def read_values(path: Path, *, by_group: bool = True) -> tuple[list[JudgedValue], np.ndarray]:
    """The judged values, and whether each is of the dev part."""
    values, dev = [], []
    for index, (_, row) in enumerate(read_jsonl(path)):
        for name, entry in row["values"].items():
            scores = {key: score for key, score in entry.items() if key != "right"}
            values.append(JudgedValue(name, scores, entry["right"], index, row["group"] if by_group else index))
            dev.append(row["dev"])
    return values, np.array(dev, bool)


def simulated(receipts: int = 280, groups: int = 90) -> list[JudgedValue]:
    """Raw scores of a model that reads well and is too sure of itself, with companies that it reads better or worse."""
    random = np.random.default_rng(0)
    unit = np.sort(random.integers(0, groups, receipts))
    values = []
    for name, level in SIMULATED.items():
        odds = random.normal(level, 2.0, receipts) + 0.7 * random.normal(size=groups)[unit]
        right = random.random(receipts) < expit(odds)
        mean = expit(0.5 * odds + 2.0 + 0.3 * random.normal(size=receipts))
        least = expit(0.8 * odds - 0.5 + 0.5 * random.normal(size=receipts))
        values += [
            JudgedValue(name, {"mean": float(mean[i]), "least": float(least[i])}, bool(right[i]), i, int(unit[i]))
            for i in range(receipts)
        ]
    return values


def columns(values: Sequence[JudgedValue]) -> tuple[np.ndarray, np.ndarray]:
    """Right, and the unit."""
    return np.array([value.right for value in values], bool), np.array([value.unit for value in values])


def as_a_run(values: list[JudgedValue], dev: np.ndarray) -> dict[str, Any]:
    """Fit outside the dev part, check on it."""
    fitted = [value for value, held_out in zip(values, dev, strict=True) if not held_out]
    checked = [value for value, held_out in zip(values, dev, strict=True) if held_out]
    calibration = fit(fitted)
    confidence, raw = calibration.of(checked), np.array([value.scores["mean"] for value in checked])
    right, units = columns(checked)
    outside = cross_fitted(fitted)
    result = measure(confidence, right, units)
    promises = {}
    for promised in PROMISES:
        promise = choose_threshold(outside, *columns(fitted), promised)
        accepted = count_accepted(confidence, right, units, accepted_by(promise, confidence))
        promises[f"{promised:.0%}"] = {
            "given": promise.threshold is not None,
            "reason": promise.reason,
            "coverage": accepted.count / len(right),
            "accepted": accepted.count,
            "wrong": accepted.wrong,
            "right_interval": [1 - accepted.interval[1], 1 - accepted.interval[0]],
        }
    return {
        "fitted_on": {"values": len(fitted), "units": len({value.unit for value in fitted})},
        "checked_on": {"values": len(right), "right": int(right.sum()), "units": result.units},
        "ece": result.ece,
        "ece_of_chance": result.ece_of_chance,
        "ece_uncalibrated": calibration_error(raw, right),
        "auroc": result.auroc,
        "auroc_of_the_mean_probability": ranking(raw, right),
        "promises": promises,
    }


def halves(values: list[JudgedValue], splits: int) -> dict[str, Any]:
    """Random halves of the units; fitted on one, checked on the other."""
    units = np.array([value.unit for value in values])
    names = np.unique(units)
    random = np.random.default_rng(0)
    errors, chances, rankings, mean_rankings, plain = [], [], [], [], []
    counts = {promised: {"given": 0, "accepted": 0, "wrong": 0, "values": 0, "missed": 0} for promised in PROMISES}
    for _ in range(splits):
        inside = np.isin(units, random.permutation(names)[: len(names) // 2])
        fitted = [values[index] for index in np.flatnonzero(inside).tolist()]
        checked = [values[index] for index in np.flatnonzero(~inside).tolist()]
        try:
            calibration, outside = fit(fitted), cross_fitted(fitted)
        except ValueError:  # one group can hold most of the values
            continue
        confidence = calibration.of(checked)
        right, checked_units = columns(checked)
        result = measure(confidence, right, checked_units)
        errors.append(result.ece)
        chances.append(result.ece_of_chance)
        rankings.append(result.auroc)
        mean = np.array([value.scores["mean"] for value in checked])
        mean_rankings.append(ranking(mean, right))
        plain.append(calibration_error(mean, right))
        for promised, count in counts.items():
            promise = choose_threshold(outside, *columns(fitted), promised)
            accepted = accepted_by(promise, confidence)
            if not accepted.any():
                continue
            wrong = int(np.sum(~right[accepted]))
            count["given"] += 1
            count["accepted"] += int(accepted.sum())
            count["wrong"] += wrong
            count["values"] += len(right)
            count["missed"] += int(wrong > (1 - promised) * accepted.sum())
    return {
        "splits": len(errors),
        "ece": float(np.mean(errors)),
        "ece_of_chance": float(np.mean(chances)),
        "ece_uncalibrated": float(np.mean(plain)),
        "auroc": float(np.mean(rankings)),
        "auroc_of_the_mean_probability": float(np.mean(mean_rankings)),
        "promises": {f"{promised:.0%}": _shares(count) for promised, count in counts.items()},
    }


def _shares(count: Mapping[str, int]) -> dict[str, Any]:
    accepted = count["accepted"]
    return {
        "splits_with_a_promise": count["given"],
        "coverage": accepted / count["values"] if accepted else 0.0,
        "right_among_accepted": 1 - count["wrong"] / accepted if accepted else None,
        "splits_with_fewer_right_than_promised": count["missed"],
    }


def main() -> None:
    """Count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, help="a file of raw predictions in place of the stored ones")
    parser.add_argument("--splits", type=int, default=20)
    arguments = parser.parse_args()
    files = {"check": arguments.check} if arguments.check else {k: path for k, path in FILES.items() if path.is_file()}
    result: dict[str, Any] = {"machine": describe_machine()}
    for name, path in files.items():
        values, dev = read_values(path)
        result[name] = {"receipts": len({value.sample for value in values})}
        if dev.any():
            result[name]["as_a_run"] = as_a_run(values, dev)
        result[name]["random_halves_by_group"] = halves(values, arguments.splits)
        result[name]["random_halves_by_receipt"] = halves(read_values(path, by_group=False)[0], arguments.splits)
    if not arguments.check:
        values = simulated()
        right = float(np.mean([value.right for value in values]))
        result["simulated"] = {"right": right, "random_halves_by_group": halves(values, arguments.splits)}
    print(json.dumps(result, indent=2))
    if not arguments.check:
        write_json(RESULTS / "calibration.json", result)


if __name__ == "__main__":
    main()
