"""From a recipe's `method` to a `MethodSet`: short forms, settings of each part, and what cannot go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.methods.base import TuningMethod
from mllm_tailor.methods.method import MethodAssignment, MethodSet
from mllm_tailor.methods.registry import METHODS
from mllm_tailor.recipe import Recipe, validate
from mllm_tailor.recipe.schema import PARTS


def make_method(recipe: Recipe) -> MethodSet:
    """The recipe's method with its settings validated; no model is needed.

    Raises:
        RecipeError: naming the setting and the nearest right word.
    """
    name, settings = recipe.method["name"], dict(recipe.method_settings)
    parts = settings.pop("parts", None)
    if isinstance(parts, Mapping):
        method = MethodSet(name, tuple(_part_assignment(part, said, name, settings) for part, said in parts.items()))
    else:
        method = MethodSet(name, (_assignment(name, settings, parts, "method"),))
    _check_together(method)
    for assignment in method.assignments:
        assignment.tuning_method.check(recipe.train)
    return method


def _part_assignment(part: str, said: Any, name: str, shared: Mapping[str, Any]) -> MethodAssignment:
    """One entry of `parts: {vision: {method: lora, rank: 16}, projector: full}`; what is said beside is the default."""
    own = {"method": said} if isinstance(said, str) else dict(said or {})
    own_name = own.pop("method", name)
    settings = (dict(shared) if own_name == name else {}) | own
    return _assignment(own_name, settings, [part], f"method.parts.{part}")


def _assignment(name: str, settings: Mapping[str, Any], parts: Any, where: str) -> MethodAssignment:
    technique_class = METHODS.load(name)
    tuning_method: TuningMethod = technique_class(name, validate(technique_class.Settings, settings, where))
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
    """A method that is an optimizer updates every trained weight, so nothing else can stand beside it."""
    moving = [
        assignment.tuning_method for assignment in method.assignments if assignment.tuning_method.name != "freeze"
    ]
    leading = next((one for one in moving if one.optimizer), None)
    for one in moving:
        if leading and (one.optimizer, one.optimizer_options) != (leading.optimizer, leading.optimizer_options):
            raise RecipeError(
                f"`method.parts`: {leading.name} is an optimizer of every trained weight, so {one.name} with settings "
                f"of its own cannot train beside it — use {leading.name} with the same settings for all parts, or "
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
