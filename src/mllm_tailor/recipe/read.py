"""YAML text into a `Recipe`, with errors that name the setting and the nearest right word."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.recipe.schema import Recipe, Stage
from mllm_tailor.recipe.yaml_loader import MAX_CHARACTERS, load_yaml

Model = TypeVar("Model", bound=BaseModel)


def read_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are `key=value` words such as `train.epochs=5`.

    Raises:
        RecipeError: naming the file, the setting and the fix.
    """
    values = load_yaml(_read_text(path), str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping such as `model: embedded` — see docs/recipe.md")
    values.setdefault("name", path.stem)
    return make_recipe(apply_overrides(values, overrides), str(path))


def _read_text(path: Path) -> str:
    if path.exists() and not (path.is_file() or path.is_dir()):  # a named pipe would be waited for without end
        raise RecipeError(f"{path}: a pipe or device, not a file — name the YAML file of a recipe")
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe — `tailor init FOLDER` writes one from your data") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}) — a recipe is a UTF-8 YAML file") from None
    except IsADirectoryError:
        inside = path / "recipe.yaml"
        fix = f"name the recipe in it: {inside}" if inside.is_file() else "name the YAML file of a recipe"
        raise RecipeError(f"{path}: a folder, not a recipe — {fix}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}) — check the name and its permissions") from None


def read_single(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """The same for commands that repeat one training with other settings or need one task.

    Raises:
        RecipeError: for a recipe with stages, too.
    """
    recipe = read_recipe(path, overrides)
    if recipe.stages:
        raise RecipeError(f"{path}: this command takes one training — give the stage in question a recipe of its own")
    return recipe


def make_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate plain values, those of every stage too."""
    recipe = validate(Recipe, values, where)
    stage_recipes(recipe, where)
    return recipe


def stage_recipes(recipe: Recipe, where: str = "recipe") -> tuple[Recipe, ...]:
    """The recipe of each stage, all on the common model; none for a recipe without stages.

    Stage 2, `questions`, of the run `runs/vqa` is a run of its own in `runs/vqa/2-questions`.

    Raises:
        RecipeError: naming the stage and the setting.
    """
    names = [stage.name for stage in recipe.stages]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{where}: two stages are called `{name}` — give each its own name")
    common = recipe.model_dump(mode="json", exclude={"stages"}) | {"output": f"{recipe.output}/{recipe.name}"}
    return tuple(
        validate(Recipe, _stage_values(common, number, stage), f"{where}: stage {number} ({stage.name})")
        for number, stage in enumerate(recipe.stages, 1)
    )


def _stage_values(common: Mapping[str, Any], number: int, stage: Stage) -> dict[str, Any]:
    """The common part with what the stage says in its place."""
    values = {**common, "name": f"{number}-{stage.name}"}
    said = stage.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    for key, own in said.items():
        whole = {"data": "train", "method": "name"}.get(key)  # says itself what it is
        stands_alone = key in ("task", "score", "score_by") or whole in own
        values[key] = own if stands_alone else {**common[key], **own}
    return values


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every setting written out, ready to be read again."""
    # Not wrapped: a folded path could not be searched for, nor copied.
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=10**9)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set dotted keys: `train.epochs=5`, `model=embedded`, `task.extract={total: string}`; values are YAML.

    An entry of a list is meant by its name or its number (from 1): `stages.questions.train.epochs=5`.
    """
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise RecipeError(f"`{word}` is not an override — write key=value, such as train.epochs=5")
        target: Any = values
        *parents, last = key.split(".")
        for parent in parents:
            if isinstance(target, list):
                target = _entry(target, parent, key)
                continue
            inner = target.get(parent)
            if isinstance(inner, list):
                target[parent] = target = [dict(one) if isinstance(one, dict) else one for one in inner]
                continue
            if isinstance(inner, str):  # a short form such as `model: embedded`, now given more to say
                inner = {{"model": "path", "data": "train", "method": "name"}.get(parent, "name"): inner}
            target[parent] = inner = dict(inner) if isinstance(inner, dict) else {}
            target = inner
        if not isinstance(target, dict):
            raise RecipeError(f"override `{key}`: name a setting of one entry, such as {'.'.join(parents)}.1.{last}")
        target[last] = load_yaml(text, f"override `{key}`") if text else None
    return values


def _entry(entries: list[Any], word: str, key: str) -> Any:
    """The entry of a list with this name or number."""
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, dict) and word in (str(number), entry.get("name")):
            return entry
    known = [str(entry.get("name", number)) for number, entry in enumerate(entries, 1) if isinstance(entry, dict)]
    raise RecipeError(f"override `{key}`: no entry `{word}` — {nearest(word, known)}")


def validate(model: type[Model], values: Any, where: str) -> Model:
    """Validate `values` as `model`, turning pydantic's report into one sentence per fault."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [_sentence(model, fault) for fault in error.errors(include_url=False, include_context=False)]
        raise RecipeError("\n".join(f"{where}: {fault}" for fault in dict.fromkeys(faults))) from None


def _sentence(model: type[BaseModel], fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    name = ".".join(location)
    if fault["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        if new := getattr(owner, "renamed", {}).get(location[-1]):
            return f"the setting `{name}` was renamed — write `{'.'.join([*location[:-1], new])}`"
        return f"unknown setting `{name}` — {nearest(location[-1], owner.model_fields if owner else ())}"
    if fault["type"] == "missing":
        owner = _model_at(model, location[:-1])
        described = owner.model_fields[location[-1]].description if owner and location[-1] in owner.model_fields else ""
        return f"`{name}` is missing — it says: {described or 'a required value'}"
    message = fault["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(fault.get("input"), dict) else f" (found {fault.get('input')!r})"
    return f"`{name}`: {message}{shown}" if name else message


def _model_at(model: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for part in location:
        if part.isdigit():  # an entry of a list, whose class is found already
            continue
        if current is None or part not in current.model_fields:
            return None
        current = model_in(current.model_fields[part].annotation)
    return current


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation such as `Tiles | None` or `list[Stage]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list):
        return next((found for inner in typing.get_args(annotation) if (found := model_in(inner))), None)
    return None
