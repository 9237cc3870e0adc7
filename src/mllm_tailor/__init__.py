"""Make a multimodal LLM good at your own use case, and measure honestly how much better it became."""

__version__ = "0.1.0"
