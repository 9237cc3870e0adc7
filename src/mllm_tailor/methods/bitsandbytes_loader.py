"""Loads bitsandbytes before PEFT does, which imports it whether or not anything is quantised.

`mllm_tailor.methods` imports this first.
"""

from mllm_tailor.core.device import load_uncompiled

load_uncompiled("bitsandbytes")
