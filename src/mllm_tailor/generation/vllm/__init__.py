"""vLLM in place of the built-in engine."""
