"""Generate replies: batched, held to a JSON schema where the task has one, with a confidence for every field."""

from mllm_tailor.predicting.choices import choose
from mllm_tailor.predicting.inputs import read_inputs
from mllm_tailor.predicting.predict import predict, predict_both
from mllm_tailor.predicting.vision import FeatureMemory

__all__ = ["FeatureMemory", "choose", "predict", "predict_both", "read_inputs"]
