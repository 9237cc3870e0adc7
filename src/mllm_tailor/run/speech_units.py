"""Audio units of a run: fitted once on its training recordings, before the model is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mllm_tailor.core.progress import console
from mllm_tailor.models.inputs.speech_units import FILE, fit_codebook, recordings_of
from mllm_tailor.run.dataset import Job
from mllm_tailor.run.run_dir import with_codebook


def with_units(job: Job, file: Path) -> Job:
    """The job with its recipe's codebook, fitted into `file` unless it is there, named, or comes with the model.

    Raises:
        DataError: when a recording cannot be read, or there are too few.
    """
    units = job.recipe.model.units
    if units is None or units.codebook or (Path(job.recipe.model.path) / FILE).is_file():
        return job
    if not file.is_file():
        recordings = recordings_of(job.learned)
        console.print(f"Fitting {units.count} audio units ({units.features}) on {len(recordings)} training recordings")
        file.parent.mkdir(parents=True, exist_ok=True)
        fit_codebook(recordings, units, job.recipe.seed).save(file)
    return replace(job, recipe=with_codebook(job.recipe, file))
