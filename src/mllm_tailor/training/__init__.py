"""Training: the loop, its batches, losses, optimizers and checkpoints.

>>> result = train(model, method, samples, recipe, Path("runs/receipts"), evaluate=score_on_dev)
"""

from mllm_tailor.training.loop import TrainResult, train
from mllm_tailor.training.objectives import Aids, check_objective
from mllm_tailor.training.optimizers import ONE_PASS, OPTIMIZERS, check_settings
from mllm_tailor.training.rehearsal import Rehearsal, rehearse
from mllm_tailor.training.stopping import Interrupted

__all__ = [
    "ONE_PASS",
    "OPTIMIZERS",
    "Aids",
    "Interrupted",
    "Rehearsal",
    "TrainResult",
    "check_objective",
    "check_settings",
    "rehearse",
    "train",
]
