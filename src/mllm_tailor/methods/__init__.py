"""What is trained and how the update is parameterised. A new method is one file and one line of `METHODS`.

>>> method = make_method(recipe)                          # settings refused here, before any model is opened
>>> model = open_model(recipe.model.path, quantize=method.quantize, quantize_skip=method.quantize_skip)
>>> applied = method.apply(model)                         # exactly `applied.trainable` will move
"""

from mllm_tailor.methods.dylora import truncate
from mllm_tailor.methods.factory import make_method
from mllm_tailor.methods.merge import check_mergeable, merge
from mllm_tailor.methods.method import MethodSet, TrainableSummary, applied_method, trainable_state_dict
from mllm_tailor.methods.registry import METHODS

__all__ = [
    "METHODS",
    "MethodSet",
    "TrainableSummary",
    "applied_method",
    "check_mergeable",
    "make_method",
    "merge",
    "trainable_state_dict",
    "truncate",
]
