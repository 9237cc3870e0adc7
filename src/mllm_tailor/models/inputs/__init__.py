"""Encode images, videos and recordings as tensors, per model family."""
