"""The modules and weights that a method targets: parts of a model compiled into exact names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from mllm_tailor.core.errors import ModelError, RecipeError, nearest

LAYER_NUMBER = re.compile(r"\.(?:layers?|blocks?|h)\.(\d+)\.")


def under(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is in `prefixes` or below one of them."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def part_of(name: str, parts: Mapping[str, Sequence[str]]) -> str:
    """The part a weight belongs to, or `other`."""
    return next((part for part, prefixes in parts.items() if under(name, prefixes)), "other")


@dataclass(frozen=True)
class Targets:
    """The chosen parts of one model, restricted to the last layers and to named linear layers where set."""

    model: nn.Module
    parts: Mapping[str, tuple[str, ...]]  # part -> prefixes of its module names
    leaves: tuple[str, ...] = ()  # last names of linear layers, such as q_proj; empty: all of them
    preferred: tuple[str, ...] = ()  # the same as a default: those that the parts have, or all where they have none
    last_layers: int | None = None  # only that many layers at the top of each part

    def __post_init__(self) -> None:
        known = {name.rpartition(".")[2] for name in self._linears()}
        for leaf in self.leaves:
            if leaf not in known:
                raise RecipeError(f"`method.targets`: no linear layer is called `{leaf}` here — {nearest(leaf, known)}")

    @cached_property
    def linears(self) -> dict[str, nn.Linear]:
        """Every targeted linear layer by name."""
        within = {name: module for name, module in self._linears().items() if self.within(name)}
        preferred = {name for name in within if name.rpartition(".")[2] in self.preferred}
        linears = {
            name: module
            for name, module in within.items()
            if (name.rpartition(".")[2] in self.leaves if self.leaves else not preferred or name in preferred)
        }
        if not linears:
            raise ModelError(f"no linear layer in {', '.join(self.parts)} matches — choose other parts or targets")
        return linears

    @property
    def pattern(self) -> str:
        """A regular expression that matches exactly the names of `linears`, as PEFT expects it."""
        grouped: dict[str, list[str]] = {}
        for name in self.linears:
            parent, _, leaf = name.rpartition(".")
            grouped.setdefault(parent, []).append(leaf)
        by_leaves: dict[tuple[str, ...], list[str]] = {}
        for parent, leaves in grouped.items():
            by_leaves.setdefault(tuple(leaves), []).append(parent)
        return "|".join(_alternatives(parents, leaves) for leaves, parents in by_leaves.items())

    def weights(self) -> dict[str, nn.Parameter]:
        """Name and tensor of every weight in the chosen parts and layers."""
        return {name: weight for name, weight in self.model.named_parameters() if self.within(name)}

    def within(self, name: str) -> bool:
        """Whether a module or weight lies in the chosen parts and layers."""
        for prefixes in self.parts.values():
            if under(name, prefixes):
                return self.last_layers is None or _layer(name) >= self._depth(prefixes) - self.last_layers
        return False

    def _linears(self) -> dict[str, nn.Linear]:
        prefixes = [prefix for names in self.parts.values() for prefix in names]
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and under(name, prefixes)
        }

    def _depth(self, prefixes: Sequence[str]) -> int:
        return 1 + max((_layer(name) for name, _ in self.model.named_parameters() if under(name, prefixes)), default=0)


def layer_number(name: str) -> int | None:
    """The number of the layer that a name is in, or None outside of layers."""
    match = LAYER_NUMBER.search(f".{name}.")
    return int(match[1]) if match else None


def folded(names: Iterable[str]) -> tuple[str, ...]:
    """Names with the numbers of layers joined to ranges: `layers.0-5.self_attn.q_proj`."""
    numbers_by_name: dict[tuple[str, str], set[int]] = {}
    for name in names:
        match = LAYER_NUMBER.search(f".{name}.")
        ends = (name[: match.start(1) - 1], name[match.end(1) - 1 :]) if match else (name, "")
        numbers_by_name.setdefault(ends, set()).update([int(match[1])] if match else [])
    return tuple(f"{before}{_spans(sorted(numbers))}{after}" for (before, after), numbers in numbers_by_name.items())


def _spans(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> `0-2,5`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans)


def _layer(name: str) -> int:
    """The number of the layer; names outside of layers count as below all layers."""
    number = layer_number(name)
    return -1 if number is None else number


def _alternatives(parents: Sequence[str], leaves: Sequence[str]) -> str:
    """`(?:layers\\.0|layers\\.1)\\.(?:q_proj|v_proj)`, with the numbers of layers grouped."""
    shapes: dict[tuple[str, str], list[str]] = {}
    for parent in parents:
        match = LAYER_NUMBER.search(f".{parent}.")
        if match is None:
            shapes.setdefault((re.escape(parent), ""), [])
            continue
        start, end = match.start(1) - 1, match.end(1) - 1
        shapes.setdefault((re.escape(parent[:start]), re.escape(parent[end:])), []).append(parent[start:end])
    leaf = re.escape(leaves[0]) if len(leaves) == 1 else f"(?:{'|'.join(map(re.escape, leaves))})"
    return "|".join(
        f"{before}{f'(?:{chr(124).join(numbers)})' if numbers else ''}{after}{chr(92) + '.' if before else ''}{leaf}"
        for (before, after), numbers in shapes.items()
    )
