"""Make a multimodal LLM good at your own use case, and measure honestly how much better it became."""

import logging

# It suggests, at every start, to install a package that would fetch compiled code from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
