"""The speech units of a run: fitted once on its training recordings, before the model is opened."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.models.inputs.speech_units import FILE, fit_codebook, recordings_of
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import with_codebook

logger = logging.getLogger(__name__)


def with_speech_units(run: ResolvedRun, samples: Sequence[Conversation], file: Path) -> ResolvedRun:
    """The run with its codebook, fitted on `samples` into `file` unless it is there, named, or part of the model.

    Raises:
        DataError: when a recording cannot be read, or there are too few.
    """
    units = run.model.units
    if units is None or units.codebook or (Path(run.model.path) / FILE).is_file():
        return run
    if not file.is_file():
        recordings = recordings_of(samples)
        logger.info("Fitting %d speech units (%s) on %d recordings", units.count, units.features, len(recordings))
        file.parent.mkdir(parents=True, exist_ok=True)
        fit_codebook(recordings, units, run.recipe.seed).save(file)
    return run.with_model(units=with_codebook(run.model, file).units)
