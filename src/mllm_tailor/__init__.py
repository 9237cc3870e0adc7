"""Make a multimodal LLM good at your own use case, and measure honestly how much better it became."""

import logging
import os

# Threads of a processor that wait for each other spin, and where other work has their cores, they spin in vain: a
# reading then took eight times the processor seconds. OpenMP looks when torch is loaded, so this comes before it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# It suggests, at every start, to install a package that would fetch compiled code from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
