"""From a recipe's `method` to a `Method`: short forms, settings of each part, and what cannot go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.methods.base import Technique
from mllm_tailor.methods.method import Method, Plan
from mllm_tailor.methods.registry import METHODS
from mllm_tailor.recipe import Recipe, validate
from mllm_tailor.recipe.schema import PARTS


def make_method(recipe: Recipe) -> Method:
    """The recipe's method with its settings validated; no model is needed.

    Raises:
        RecipeError: naming the setting and the nearest right word.
    """
    name, settings = recipe.method["name"], dict(recipe.method_settings)
    parts = settings.pop("parts", None)
    if isinstance(parts, Mapping):
        method = Method(name, tuple(_part_plan(part, said, name, settings) for part, said in parts.items()))
    else:
        method = Method(name, (_plan(name, settings, parts, "method"),))
    _check_together(method)
    for plan in method.plans:
        plan.technique.check(recipe.train)
    return method


def _part_plan(part: str, said: Any, name: str, shared: Mapping[str, Any]) -> Plan:
    """One entry of `parts: {vision: {method: lora, rank: 16}, projector: full}`; what is said beside is the default."""
    own = {"method": said} if isinstance(said, str) else dict(said or {})
    own_name = own.pop("method", name)
    settings = (dict(shared) if own_name == name else {}) | own
    return _plan(own_name, settings, [part], f"method.parts.{part}")


def _plan(name: str, settings: Mapping[str, Any], parts: Any, where: str) -> Plan:
    technique_class = METHODS.load(name)
    technique: Technique = technique_class(name, validate(technique_class.Settings, settings, where))
    chosen = (parts,) if isinstance(parts, str) else tuple(parts or technique.default_parts)
    for part in chosen:
        if part not in PARTS:
            raise RecipeError(f"`method.parts`: unknown part `{part}` — {nearest(str(part), PARTS)}")
        if part not in technique.only_parts:
            raise RecipeError(
                f"`method.parts`: {name} works on {', '.join(technique.only_parts)}, not on {part} — use lora there"
            )
    return Plan(chosen, technique)


def _check_optimizers(method: Method) -> None:
    """A method that is an optimizer updates every trained weight, so nothing else can stand beside it."""
    moving = [plan.technique for plan in method.plans if plan.technique.name != "freeze"]
    leading = next((one for one in moving if one.optimizer), None)
    for one in moving:
        if leading and (one.optimizer, one.optimizer_options) != (leading.optimizer, leading.optimizer_options):
            raise RecipeError(
                f"`method.parts`: {leading.name} is an optimizer of every trained weight, so {one.name} with settings "
                f"of its own cannot train beside it — use {leading.name} with the same settings for all parts, or "
                "freeze the others"
            )


def _check_together(method: Method) -> None:
    named = [part for plan in method.plans for part in plan.parts]
    for part in named:
        if named.count(part) > 1:
            raise RecipeError(f"`method.parts`: {part} is named twice — name it once")
    _check_optimizers(method)
    if not method.parts:
        raise RecipeError("`method`: every part is frozen, so nothing would be trained — train at least one part")
