"""Original InternVL checkpoints (`model_type: internvl_chat`, Mini-InternVL to InternVL 3) in the native layout.

The original layout works only with its own Python code and old transformers. The map of names, settings and traps was
checked number by number; nothing of a checkpoint's code is ever run.
"""

from mllm_tailor.models.checkpoint import ORIGINAL
from mllm_tailor.models.convert.stream import convert, native_folder

__all__ = ["ORIGINAL", "convert", "native_folder"]
