"""The recipe: one YAML file, validated. No torch here."""

from mllm_tailor.recipe.decoding import DecodingMode
from mllm_tailor.recipe.objectives import Clipping, Distill, Prefer, ReplySampling, Reward
from mllm_tailor.recipe.read import dump_recipe, make_recipe, read_recipe, read_single, stage_recipes, validate
from mllm_tailor.recipe.schema import (
    DataSpec,
    HeldOut,
    ModelSpec,
    Predict,
    Recipe,
    Source,
    Stage,
    Tiles,
    Train,
)
from mllm_tailor.recipe.settings import Settings

__all__ = [
    "Clipping",
    "DataSpec",
    "DecodingMode",
    "Distill",
    "HeldOut",
    "ModelSpec",
    "Predict",
    "Prefer",
    "Recipe",
    "ReplySampling",
    "Reward",
    "Settings",
    "Source",
    "Stage",
    "Tiles",
    "Train",
    "dump_recipe",
    "make_recipe",
    "read_recipe",
    "read_single",
    "stage_recipes",
    "validate",
]
