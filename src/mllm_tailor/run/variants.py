"""A run with another method or objective and a budget, as `tailor compare-methods` makes them of one recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.methods import METHODS
from mllm_tailor.recipe import Distill, Prefer, Reward, Settings, Train, make_recipe
from mllm_tailor.recipe.yaml_loader import load_yaml
from mllm_tailor.run.budget import Budget
from mllm_tailor.run.resolve import ResolvedRun, resolve_saved

BETWEEN_VARIANTS = re.compile(r",(?![^\[]*\])")  # a comma, but none inside a list
PLAIN = "cross_entropy"
OBJECTIVES: dict[str, type[Settings] | None] = {  # settings of `train` by the name under which a recipe has them
    PLAIN: None,
    "prefer": Prefer,
    "reward": Reward,
    "distill": Distill,
}
TRAIN_SETTINGS = frozenset(Train.model_fields) - OBJECTIVES.keys()
BUDGETED = {"epochs", "steps", "max_minutes", "max_cpu_minutes"}  # settings that the budget decides


@dataclass(frozen=True)
class Variant:
    """A method, an objective or both, each with settings: `lora:rank=8+reward:group_size=4`.

    What is not named is as in the recipe.
    """

    words: str  # as on the command line
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the method
    objective: str | None = None
    objective_settings: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)  # settings of `train` that the objective needs otherwise

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.words).strip("-")


def read_variants(words: str) -> list[Variant]:
    """`lora,bottleneck:placement=series,reward:loss=gspo` -> three variants.

    Raises:
        RecipeError: naming the word, the setting or its value.
    """
    variants = [_variant(word.strip()) for word in BETWEEN_VARIANTS.split(words)]
    for variant in variants:
        if variants.count(variant) > 1:
            raise RecipeError(f"`--methods`: {variant.words} is named twice — name it once")
    return variants


def _variant(word: str) -> Variant:
    """A word of `--methods`: at most one method and at most one objective, joined by `+`."""
    parts = [part.strip() for part in word.split("+")]
    kinds = [part.split(":")[0] in OBJECTIVES for part in parts]
    if len(parts) > 2 or kinds.count(False) > 1 or kinds.count(True) > 1:
        raise RecipeError(f"`--methods`: {word}: join one method and one objective, such as lora:rank=8+reward")
    objective = parts[kinds.index(True)] if True in kinds else ""
    method = parts[kinds.index(False)] if False in kinds else ""
    name, settings = _method(method, word)
    kind, own, train = _objective(objective, word)
    return Variant(word, name, settings, kind, own, train)


def _method(part: str, word: str) -> tuple[str | None, dict[str, Any]]:
    if not part:
        return None, {}
    name = part.split(":")[0]
    if name not in METHODS:
        hint = nearest(name, [*METHODS, *OBJECTIVES])
        raise RecipeError(f"`--methods`: unknown method or objective `{name}` — {hint}")
    known = METHODS.load(name).Settings.model_fields
    values = _settings(part, {*known, "parts"}, word)
    resolve_saved(make_recipe({"data": "", "task": "answer", "method": {"name": name, **values}}, word))
    return name, values


def _objective(part: str, word: str) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """Name, settings of the objective, and settings of `train` beside it."""
    if not part:
        return None, {}, {}
    name = part.split(":")[0]
    model = OBJECTIVES[name]
    known = set() if model is None else set(model.model_fields)
    values = _settings(part, known | TRAIN_SETTINGS - BUDGETED, word)
    own = {key: value for key, value in values.items() if key in known}
    train = {key: value for key, value in values.items() if key not in known}
    settings = train if model is None else train | {name: own}
    make_recipe({"data": "", "task": "answer", "train": settings}, word)
    return name, own, train


def _settings(part: str, known: set[str] | frozenset[str], word: str) -> dict[str, Any]:
    name, *settings = part.split(":")
    values = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in known:
            raise RecipeError(f"`--methods`: {word}: unknown setting `{key}` of {name} — {nearest(key, known)}")
        values[key] = load_yaml(value, f"`--methods` {word}")
    return values


def with_variant(base: ResolvedRun, variant: Variant, budget: Budget, folder: Path) -> ResolvedRun:
    """The run with another method or objective and the budget; the recipe's settings are kept where these have them.

    The recipe's learning rate was chosen for its own method. It is kept for methods with the same default rate; others
    use their default or the rate given with them.

    Raises:
        RecipeError: when a kept setting is incompatible with the method.
    """
    values = base.recipe.model_dump(mode="json")
    values |= {"name": variant.folder, "output": str(folder)}
    values["train"] |= budget.train()
    if variant.method is not None:
        method, same_rate = _changed_method(base, variant.method)
        values["method"] = {**method, **variant.settings}
        values["train"] |= {} if same_rate else {"learning_rate": None}
    if variant.objective is not None:
        settings: dict[str, Any] = dict.fromkeys(name for name, model in OBJECTIVES.items() if model is not None)
        kept = getattr(base.recipe.train, variant.objective, None)
        own = {} if kept is None or variant.objective_settings else kept.model_dump(mode="json")
        if variant.objective != PLAIN:
            settings[variant.objective] = {**own, **variant.objective_settings}
        values["train"] |= {**settings, **variant.train}
    return resolve_saved(make_recipe(values))


def _changed_method(base: ResolvedRun, name: str) -> tuple[dict[str, Any], bool]:
    """The settings of method `name` as far as the recipe's method has them, and whether both learn at one rate."""
    recipe = base.recipe
    tuning_method, own = METHODS.load(name), METHODS.load(recipe.method["name"])
    same_rate = tuning_method.rate == own.rate
    kept = {key: value for key, value in recipe.method_settings.items() if key in tuning_method.Settings.model_fields}
    if "parts" in recipe.method:
        kept["parts"] = recipe.method["parts"]
    if not same_rate:
        kept.pop("learning_rate", None)
    return {"name": name, **kept}, same_rate
