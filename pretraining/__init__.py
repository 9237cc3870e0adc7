"""Pretraining of the embedded model from nothing, on documents drawn here (see docs/experiments.md)."""
