"""Names to `"module:attribute"` strings, resolved when asked for, so that a registry line costs no import."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mllm_tailor.core.errors import RecipeError, nearest


@dataclass(frozen=True)
class Entry:
    """One registered name: where it lives and the line `--help` and the reference pages show."""

    target: str  # "module:attribute"
    summary: str


class Registry:
    """An ordered table of names. `kind` is the word used in messages ("method", "metric", …)."""

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self.entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def summary(self, name: str) -> str:
        """The one-line description of `name`."""
        return self.entries[name].summary

    def load(self, name: str) -> Any:
        """Import and return what `name` stands for; an unknown name is an error that names the nearest right one."""
        if name not in self.entries:
            raise RecipeError(f"unknown {self.kind} `{name}` — {nearest(name, self.entries)}")
        return load(self.entries[name].target)


def load(target: str) -> Any:
    """Import and return what a `"module:attribute"` string stands for."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
