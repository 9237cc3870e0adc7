"""Original InternVL checkpoints (`model_type: internvl_chat`, Mini-InternVL to InternVL 3) in the native layout.

The original layout works only with the Python code of the checkpoint and old transformers. The conversion of names and
settings was checked numerically; no code of a checkpoint is run.
"""

from mllm_tailor.models.checkpoint import ORIGINAL
from mllm_tailor.models.convert.stream import convert, native_folder

__all__ = ["ORIGINAL", "convert", "native_folder"]
