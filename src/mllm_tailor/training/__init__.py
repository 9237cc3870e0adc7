"""Training: the loop, its batches, losses, optimizers and checkpoints.

>>> result = train(model, method, samples, recipe, Path("runs/receipts"), evaluate=score_on_dev)
"""

from mllm_tailor.training.interrupt import Interrupted
from mllm_tailor.training.loop import TrainResult, train
from mllm_tailor.training.objectives.base import ObjectiveInputs, check_objective
from mllm_tailor.training.optim.registry import ONE_PASS, OPTIMIZERS, check_settings
from mllm_tailor.training.profile import StepProfile, profile_step

__all__ = [
    "ONE_PASS",
    "OPTIMIZERS",
    "Interrupted",
    "ObjectiveInputs",
    "StepProfile",
    "TrainResult",
    "check_objective",
    "check_settings",
    "profile_step",
    "train",
]
