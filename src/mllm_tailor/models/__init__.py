"""Open a checkpoint for use, and turn samples into the numbers it reads. Native transformers classes only."""
