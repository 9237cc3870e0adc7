"""Load a checkpoint and turn samples into model inputs. Native transformers classes only.

>>> from mllm_tailor.models import generate, load_model
>>> model = load_model("embedded")
>>> replies = generate([Sample("1", media=(Media("image", Path("receipt.jpg")),), prompt="Total?")], model)
"""

from mllm_tailor.models.encode import (
    Length,
    collate,
    context_error,
    count_tokens,
    encode,
    measure_length,
    prompt_inputs,
)
from mllm_tailor.models.encoded import NO_LOSS, Encoded
from mllm_tailor.models.families import FAMILIES, Family
from mllm_tailor.models.features import has_features, media_features
from mllm_tailor.models.generate import generate
from mllm_tailor.models.input_settings import InputSettings
from mllm_tailor.models.inputs.dual_encoder import embed_images, embed_texts
from mllm_tailor.models.inputs.tiling import tile_grid, tile_image
from mllm_tailor.models.load import load_model, load_without_weights
from mllm_tailor.models.meta import MetaModel, load_meta_model
from mllm_tailor.models.model import LoadedModel
from mllm_tailor.models.save import save_model
from mllm_tailor.models.share import share_weights

__all__ = [
    "FAMILIES",
    "NO_LOSS",
    "Encoded",
    "Family",
    "InputSettings",
    "Length",
    "LoadedModel",
    "MetaModel",
    "collate",
    "context_error",
    "count_tokens",
    "embed_images",
    "embed_texts",
    "encode",
    "generate",
    "has_features",
    "load_meta_model",
    "load_model",
    "load_without_weights",
    "measure_length",
    "media_features",
    "prompt_inputs",
    "save_model",
    "share_weights",
    "tile_grid",
    "tile_image",
]
