"""Pretraining of the embedded model from random weights, on documents drawn by mllm_tailor.synthetic."""
