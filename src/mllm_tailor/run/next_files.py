"""`tailor next`: unlabelled files in the order in which labelling them is worth most."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.generation import read_inputs
from mllm_tailor.models import LoadedModel, media_features
from mllm_tailor.run.fingerprints import read_fingerprints
from mllm_tailor.run.new_files import predict_to_file, predictor_of_run
from mllm_tailor.run.predict import open_base
from mllm_tailor.run.run_dir import RunFolder, open_run
from mllm_tailor.scoring.acquisition import rank_by_worth

logger = logging.getLogger(__name__)
MOST_LABELLED = 500  # training samples that distances are measured to; a chance choice where there are more
UNKNOWN = 1.0  # doubt about a file of whose reply no value has a confidence


@dataclass(frozen=True)
class RankedFile:
    """A file and what labelling it is worth."""

    file: str
    worth: float
    doubt: float
    distance: float


@dataclass(frozen=True)
class Ranking:
    """Files in the order of their worth, and why others are not ranked."""

    files: tuple[RankedFile, ...]
    labelled: int  # training samples that distances are measured to
    calibrated: bool
    unread: tuple[str, ...]


def rank_files(run: Path, paths: Sequence[Path | str], predictions: Path, count: int | None = None) -> Ranking:
    """Read files with a run's model, then rank them by doubt and by distance in the frozen features of its base.

    Interrupted, the same call keeps what was read.

    Raises:
        RunError: for an unfinished run, or where no file can be ranked.
        DataError: for media without features, such as recordings read as words.
    """
    folder = open_run(run)
    samples = read_inputs(paths)
    predictor = predictor_of_run(run)
    rows = {str(row["id"]): row for row in predict_to_file(predictions, predictor, samples)}
    unread = [str(rows[s.id]["problem"]) for s in samples if not s.media or "problem" in s.extra]
    samples = [sample for sample in samples if sample.media and "problem" not in sample.extra]
    if not samples:
        raise RunError(f"{run}: no file to rank{': ' + unread[0] if unread else ''}")
    doubt = np.array([doubt_of(rows[sample.id].get("confidence") or {}) for sample in samples])
    model = open_base(predictor.run)
    labelled = training_files(folder)
    features = _features(samples, model)
    known = _features(labelled, model) if labelled else np.empty((0, features.shape[1]), np.float32)
    ranked = rank_by_worth(doubt, features, known, count)
    names = [str(sample.extra.get("file") or sample.source) for sample in samples]
    return Ranking(
        files=tuple(RankedFile(names[item.index], item.worth, item.doubt, item.distance) for item in ranked),
        labelled=len(labelled),
        calibrated=all(row.get("calibrated", True) for row in rows.values()),
        unread=tuple(unread),
    )


def doubt_of(confidence: dict[str, float]) -> float:
    """The expected number of wrong values of a reply; lists count by their cells.

    >>> round(doubt_of({"total": 0.9, "items": 0.5, "items.0.name": 0.8}), 2), doubt_of({})
    (0.3, 1.0)
    """
    single = {
        path: share
        for path, share in confidence.items()
        if not any(other.startswith(f"{path}.") for other in confidence)
    }
    return sum(1.0 - share for share in single.values()) if single else UNKNOWN


def training_files(folder: RunFolder) -> list[Sample]:
    """The training samples of a run whose files are still where they were, by their first file."""
    samples = []
    for row in read_fingerprints(folder):
        if row.get("split") not in ("train", "dev", "mixed") or not row["media"]:
            continue
        path = Path(row["media"][0])
        if path.is_file():
            samples.append(Sample(str(row["id"]), (Media("image", path),)))
    samples.sort(key=lambda sample: hashlib.sha256(sample.id.encode(errors="replace")).digest())
    if not samples:
        logger.warning(
            "None of the training files of %s is where it was: files are compared among themselves", folder.path
        )
    return samples[:MOST_LABELLED]


def _features(samples: Sequence[Sample], model: LoadedModel) -> np.ndarray:
    rows = []
    for sample in track(samples, "Comparing files"):
        try:
            rows.append(media_features([sample], model)[0])
        except DataError as error:
            raise DataError(f"{error} — `tailor next` compares images, pages and videos") from None
    return np.stack(rows)
