"""The recipe: one YAML file, validated. No torch here."""

from mllm_tailor.recipe.decoding import DecodingMode
from mllm_tailor.recipe.read import dump_recipe, make_recipe, read_recipe, read_single, stage_recipes, validate
from mllm_tailor.recipe.schema import (
    DataSpec,
    HeldOut,
    ModelSpec,
    Predict,
    Recipe,
    Settings,
    Source,
    Stage,
    Tiles,
    Train,
)

__all__ = [
    "DataSpec",
    "DecodingMode",
    "HeldOut",
    "ModelSpec",
    "Predict",
    "Recipe",
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
