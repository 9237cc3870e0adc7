"""Make a multimodal LLM good at your own use case, and measure honestly how much better it became."""

import logging
import os

# Threads of a processor that wait for each other spin first, and where other work has their cores, they spin in vain: a
# reading then took eight times the processor seconds. A three-hundredth of GNU OpenMP's usual spinning is as quick on
# free cores (docs/performance.md). It looks when torch is loaded, so this comes before it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# It suggests, at every start, to install a package that would fetch compiled code from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
