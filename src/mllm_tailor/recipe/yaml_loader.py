"""Safe YAML for recipes: plain values only, no repeated keys, `5e-4` is a number, and every fault names its line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from mllm_tailor.core.errors import RecipeError

MAX_CHARACTERS = 1 << 20  # of a recipe; a long one of ours has a few thousand
MAX_DEPTH = 40  # of nested lists and mappings


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads `5e-4` as a number (YAML 1.1 wants a dot)."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node; the depth is counted here, before the recursion of the composer can exhaust the stack."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise RecipeError(f"line {self.line + 1}: nested more than {MAX_DEPTH} deep — a recipe needs five levels")
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
            return node
        finally:
            self.depth -= 1


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError(f"{_line(key_node)}: a list or mapping is no name of a setting — write a word")
        key = _construct(loader, key_node, "this key")
        if key in seen:
            raise RecipeError(f"{_line(key_node)}: `{key}` is stated twice — keep one")
        seen.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key_node, deep=True): _construct(loader, value_node, f"`{key_node.value}`")
        for key_node, value_node in node.value
    }


def _construct(loader: _Loader, node: yaml.Node, what: str) -> Any:
    """The value of a node; text that is not of the kind it looks like or is tagged as is named with its key."""
    try:
        return loader.construct_object(node, deep=True)
    except (ValueError, KeyError, OverflowError, TypeError, AttributeError):
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        shown = f" {text[:40]!r}{' …' if len(text) > 40 else ''}" if text else ""
        kind = str(node.tag).rpartition(":")[2]
        raise RecipeError(
            f"{_line(node)}: the value{shown} of {what} is no valid {kind} — quote it if it is text"
        ) from None


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_yaml(text: str, where: str) -> Any:
    """Parse YAML safely.

    Raises:
        RecipeError: naming `where`, the line and, for a value, its key.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"{where}: {len(text):,} characters, over the limit of {MAX_CHARACTERS:,} for a recipe")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader with limits)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise RecipeError(f"{where}:{line} not valid YAML ({getattr(error, 'problem', error)}) — correct it") from None
    except (ValueError, KeyError, OverflowError, TypeError, AttributeError):
        raise RecipeError(f"{where}: holds a value that is not of the kind it looks like — quote texts") from None
    except RecursionError:
        raise RecipeError(f"{where}: refers to itself or is nested too deep — write every value out") from None
