"""What is trained and how the update is parameterised. A new method is a file and a line of `METHODS`.

>>> method = make_method(recipe)                          # validates the settings before any model is loaded
>>> model = load_model(recipe.model.path, quantize=method.quantize, quantize_skip=method.quantize_skip)
>>> summary = method.apply(model)                         # only `summary.trainable` will change
"""

from mllm_tailor.methods.dylora import truncate
from mllm_tailor.methods.factory import make_method
from mllm_tailor.methods.merge import MergeWay, check_mergeable, merge
from mllm_tailor.methods.method import AppliedMethod, MethodSet, TrainableSummary, trainable_state_dict
from mllm_tailor.recipe.method_table import METHODS

__all__ = [
    "METHODS",
    "AppliedMethod",
    "MergeWay",
    "MethodSet",
    "TrainableSummary",
    "check_mergeable",
    "make_method",
    "merge",
    "trainable_state_dict",
    "truncate",
]
