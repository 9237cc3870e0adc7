"""Trackers beside `log.jsonl`: TensorBoard, MLflow, Weights & Biases and Trackio.

Each writes into the run folder unless the tracker's own environment variables name a server: nothing leaves the machine
by itself. A resumed training continues the same run of a tracker.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import fingerprint
from mllm_tailor.core.optional import need

logger = logging.getLogger(__name__)
PROJECT = "mllm-tailor"


class Tracker(Protocol):
    """Takes the numbers of a training."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name, such as `train/loss`, after so many steps."""

    def close(self) -> None:
        """The training has ended, for now."""


def open_trackers(names: Sequence[str], folder: Path, first_step: int) -> list[Tracker]:
    """TensorBoard where it is installed, and the trackers of these names.

    Raises:
        RunError: for one that is not installed, naming the extra.
    """
    return [*_tensorboard(folder / "tensorboard", first_step), *(OPENERS[name](folder) for name in names)]


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a killed process loses nothing that its checkpoint has

    def close(self) -> None:
        self.writer.close()


def _tensorboard(folder: Path, first_step: int) -> list[Tracker]:
    """A writer that hides earlier events from `first_step` on; none where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed; `pip install 'mllm-tailor[tensorboard]'` adds its event files")
        return []
    return [_TensorBoard(SummaryWriter(str(folder), purge_step=first_step))]


class _MLflow:
    """A run in `mlflow.db` of the run folder, or on the server of MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path) -> None:
        mlflow = need("mlflow", "mlflow", "train.trackers: mlflow", RunError)
        local = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self.client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment is not None else self.client.create_experiment(PROJECT)
        key = _key(folder)
        runs = self.client.search_runs([number], f"tags.key = '{key}'")
        self.run = (runs[0] if runs else self.client.create_run(number, run_name=folder.name, tags={"key": key})).info
        self.client.update_run(self.run.run_id, status="RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run.run_id, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run.run_id)


class _WandB:
    """An offline run in `wandb` of the run folder, for `wandb sync`; online where WANDB_MODE says so."""

    def __init__(self, folder: Path) -> None:
        wandb = need("wandb", "wandb", "train.trackers: wandb", RunError)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=_key(folder),
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            settings=wandb.Settings(console="off", disable_git=True, save_code=False, silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    """A run in Trackio's database on this machine; on a Space where TRACKIO_SPACE_ID names one."""

    def __init__(self, folder: Path) -> None:
        trackio = need("trackio", "trackio", "train.trackers: trackio", RunError)
        with redirect_stdout(sys.stderr):  # where results of commands are not
            self.run = trackio.init(
                project=PROJECT, name=f"{folder.name}-{_key(folder)}", resume="allow", embed=False,
                space_id=os.environ.get("TRACKIO_SPACE_ID"),
            )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.run.finish()


OPENERS: Mapping[str, Callable[[Path], Tracker]] = {"mlflow": _MLflow, "wandb": _WandB, "trackio": _Trackio}


def _key(folder: Path) -> str:
    """The same for every call on one run folder."""
    return fingerprint(str(folder.resolve()))[:16]
