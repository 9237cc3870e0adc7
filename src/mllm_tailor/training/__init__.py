"""Training: the loop, its batches, objectives, optimizers and checkpoints.

>>> config = TrainingConfig.from_recipe(recipe)
>>> result = train(model, samples, config, Path("runs/receipts"), TrainingHooks(evaluate=score_on_dev))
"""

from mllm_tailor.recipe.optimizer_table import ONE_PASS, OPTIMIZERS
from mllm_tailor.training.config import (
    ObjectiveInputs,
    Rollout,
    SampleReplies,
    TrainingConfig,
    TrainingEvent,
    TrainingHooks,
)
from mllm_tailor.training.interrupt import Interrupted
from mllm_tailor.training.loop import train
from mllm_tailor.training.objectives.factory import OBJECTIVES, check_objective, check_turns, is_data_parallel
from mllm_tailor.training.optim.registry import check_settings
from mllm_tailor.training.profile import StepProfile, profile_step
from mllm_tailor.training.shard_settings import check_sharding
from mllm_tailor.training.state import TrainResult

__all__ = [
    "OBJECTIVES",
    "ONE_PASS",
    "OPTIMIZERS",
    "Interrupted",
    "ObjectiveInputs",
    "Rollout",
    "SampleReplies",
    "StepProfile",
    "TrainResult",
    "TrainingConfig",
    "TrainingEvent",
    "TrainingHooks",
    "check_objective",
    "check_settings",
    "check_sharding",
    "check_turns",
    "is_data_parallel",
    "profile_step",
    "train",
]
