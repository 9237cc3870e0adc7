"""Merge a run's adapter into its base as a plain checkpoint: for the next stage, vLLM and `tailor merge`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm_tailor.core.io import atomic_folder
from mllm_tailor.core.manifest import record, recorded, verify
from mllm_tailor.methods import MergeWay, check_mergeable, merge
from mllm_tailor.models import LoadedModel, save_model
from mllm_tailor.run.predict import open_tuned
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder

logger = logging.getLogger(__name__)


def merged_folder(run: ResolvedRun, folder: RunFolder, target: Path) -> Path:
    """The merged checkpoint of a finished run, in the run's number format: written to `target`, or verified there.

    Raises:
        ModelError: for a method whose update cannot be expressed by weight matrices, and for a damaged `target`.
    """
    if target.is_dir():
        verify(folder.path, target)
        if not recorded(folder.path, target):  # stopped between writing and recording
            record(folder.path, target)
        return target
    check_mergeable(run.method)
    logger.info("Merging the adapter into the model: %s", target)
    with save_merged(open_tuned(run, folder.adapter), target):
        pass
    record(folder.path, target)
    return target


@contextmanager
def save_merged(model: LoadedModel, target: Path, how: MergeWay = "dequantised") -> Iterator[Path]:
    """Merge `model` in place and save it; the block may add files to the folder before it becomes `target`."""
    merge(model, how)
    with atomic_folder(target, replace=False) as partial:
        save_model(model, partial)
        yield partial
