"""Rules of the house that the code itself can be asked about."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import mllm_tailor

ROOT = Path(mllm_tailor.__file__).parent
MOST_WITH_A_RECIPE = 15  # signatures; others name what they need of it
REPOSITORY = ROOT.parents[1]
OF_OLD_COMMITS = {"benchmarks/reading_worker.py"}  # imports what an earlier commit named otherwise
RESOLVED_IN = {"run/resolve.py"}  # what follows from a recipe is worked out here and nowhere else


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path.relative_to(ROOT).as_posix(), node


def takes_a_recipe(function: ast.FunctionDef) -> bool:
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    annotations = [ast.unparse(argument.annotation) for argument in arguments if argument.annotation is not None]
    return any("Recipe" in {word.strip() for word in text.replace("[", "|").split("|")} for text in annotations)


def test_few_signatures_take_a_whole_recipe() -> None:
    found = [f"{path}:{function.name}" for path, function in functions() if takes_a_recipe(function)]
    assert len(found) <= MOST_WITH_A_RECIPE, "\n".join(found)


def test_a_recipe_is_resolved_in_one_place() -> None:
    calls = {"make_method", "make_task", "metric_names", "requested_mode", "decoding_modes"}
    found = [
        f"{path}:{node.lineno}: {node.func.id}"
        for path in sorted(ROOT.glob("run/*.py")) + sorted(ROOT.glob("commands/*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls
        if path.relative_to(ROOT).as_posix() not in RESOLVED_IN
    ]
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_what_scripts_import_from_the_package_exists() -> None:
    """Benchmarks, tools and research run too seldom for a renamed import to be noticed otherwise."""
    missing = []
    scripts = [path for folder in ("benchmarks", "tools", "research") for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(scripts) > 50
    for path in scripts:
        name = path.relative_to(REPOSITORY).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mllm_tailor":
                module = importlib.import_module(str(node.module)) if name not in OF_OLD_COMMITS else None
                missing += [f"{name}: {item.name}" for item in node.names if module and not _has(module, item.name)]
    assert not missing, "\n".join(missing)


def _has(module: ModuleType, name: str) -> bool:
    submodule = hasattr(module, "__path__") and importlib.util.find_spec(f"{module.__name__}.{name}") is not None
    return hasattr(module, name) or submodule
