"""Build the `MethodSet` of a recipe: expand short forms, validate the settings of each part, refuse conflicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.methods.base import TuningMethod
from mllm_tailor.methods.method import MethodAssignment, MethodSet
from mllm_tailor.recipe import Recipe, validate
from mllm_tailor.recipe.method_table import METHODS
from mllm_tailor.recipe.schema import PARTS


def make_method(recipe: Recipe) -> MethodSet:
    """The recipe's method with its settings validated; no model is needed.

    Raises:
        RecipeError: naming the setting and the nearest valid value.
    """
    name, settings = recipe.method["name"], dict(recipe.method_settings)
    parts = settings.pop("parts", None)
    if isinstance(parts, Mapping):
        method = MethodSet(name, tuple(_part_assignment(part, entry, name, settings) for part, entry in parts.items()))
    else:
        method = MethodSet(name, (_assignment(name, settings, parts, "method"),))
    _check_together(method)
    for assignment in method.assignments:
        assignment.tuning_method.check(recipe.train)
    return method


def _part_assignment(part: str, entry: Any, name: str, shared: Mapping[str, Any]) -> MethodAssignment:
    """An entry of `parts: {vision: {method: lora, rank: 16}, projector: full}`; `shared` holds the common settings."""
    own = {"method": entry} if isinstance(entry, str) else dict(entry or {})
    own_name = own.pop("method", name)
    settings = (dict(shared) if own_name == name else {}) | own
    return _assignment(own_name, settings, [part], f"method.parts.{part}")


def _assignment(name: str, settings: Mapping[str, Any], parts: Any, where: str) -> MethodAssignment:
    method_class = METHODS.load(name)
    tuning_method: TuningMethod = method_class(name, validate(method_class.Settings, settings, where))
    chosen = (parts,) if isinstance(parts, str) else tuple(parts or tuning_method.default_parts)
    for part in chosen:
        if part not in PARTS:
            raise RecipeError(f"`method.parts`: unknown part `{part}` — {nearest(str(part), PARTS)}")
        if part not in tuning_method.only_parts:
            raise RecipeError(
                f"`method.parts`: {name} works on {', '.join(tuning_method.only_parts)}, not on {part} — use lora there"
            )
    return MethodAssignment(chosen, tuning_method)


def _check_optimizers(method: MethodSet) -> None:
    """A method that is an optimizer updates every trained weight, so it cannot be combined with another method."""
    trained = [
        assignment.tuning_method for assignment in method.assignments if assignment.tuning_method.name != "freeze"
    ]
    leading = next((tuning_method for tuning_method in trained if tuning_method.optimizer), None)
    for other in trained:
        if leading and (other.optimizer, other.optimizer_options) != (leading.optimizer, leading.optimizer_options):
            raise RecipeError(
                f"`method.parts`: {leading.name} is an optimizer of every trained weight, so {other.name} with other "
                f"settings cannot be combined with it — use {leading.name} with the same settings for all parts, or "
                "freeze the others"
            )


def _check_together(method: MethodSet) -> None:
    named = [part for assignment in method.assignments for part in assignment.parts]
    for part in named:
        if named.count(part) > 1:
            raise RecipeError(f"`method.parts`: {part} is named twice — name it once")
    _check_optimizers(method)
    if not method.parts:
        raise RecipeError("`method`: every part is frozen, so nothing would be trained — train at least one part")
