"""Open a checkpoint for use, and turn samples into the numbers it reads. Native transformers classes only.

>>> from mllm_tailor.models import open_model
>>> model = open_model("embedded")
>>> replies = model.generate([Sample("1", media=(Media("image", Path("receipt.jpg")),), prompt="Total?")])
"""

from mllm_tailor.models.encode import NO_LOSS, Encoded, Length, collate, count_tokens, encode, measure_length
from mllm_tailor.models.families import FAMILIES, Family
from mllm_tailor.models.inputs.dual_encoder import embed_pictures, embed_texts
from mllm_tailor.models.inputs.tiling import tile_grid, tile_image
from mllm_tailor.models.load import load_model
from mllm_tailor.models.meta import MetaModel, load_meta_model
from mllm_tailor.models.model import LoadedModel

__all__ = [
    "FAMILIES",
    "NO_LOSS",
    "Encoded",
    "Family",
    "Length",
    "LoadedModel",
    "MetaModel",
    "collate",
    "count_tokens",
    "embed_pictures",
    "embed_texts",
    "encode",
    "load_meta_model",
    "load_model",
    "measure_length",
    "tile_grid",
    "tile_image",
]
