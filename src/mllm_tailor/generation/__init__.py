"""Generation: batched decoding, constrained by a JSON schema where the task has one, with a confidence per field."""

from mllm_tailor.generation.inputs import read_inputs, with_files
from mllm_tailor.generation.loglikelihood import choose
from mllm_tailor.generation.predict import predict, predict_both
from mllm_tailor.models.vision_cache import VisionFeatureCache

__all__ = ["VisionFeatureCache", "choose", "predict", "predict_both", "read_inputs", "with_files"]
