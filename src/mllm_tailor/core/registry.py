"""Tables of names: ours as `"module:attribute"` strings, those of other packages as entry points.

Both are imported only when asked for, so that a line in a table costs no import. Another package adds a name in its
pyproject.toml, for example a metric:

    [project.entry-points."mllm_tailor.metrics"]
    my_metric = "my_package.metrics:my_metric"
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mllm_tailor.core.errors import RecipeError, nearest

OWN_PACKAGE = "mllm-tailor"


@dataclass(frozen=True)
class Entry:
    """One registered name: where it is defined and the line that `--help` and the reference pages show."""

    target: str  # "module:attribute"
    summary: str


class Registry:
    """An ordered table of names: our own, then those of other packages in the order of the alphabet."""

    def __init__(self, kind: str, entries: Mapping[str, Entry], group: str | None = None) -> None:
        """`kind` is the word of messages ("method", "metric", …); `group` the entry points that add names."""
        self.kind = kind
        self.entries = dict(entries)
        self.group = group

    @cached_property
    def foreign(self) -> dict[str, list[EntryPoint]]:
        """The entry points of other packages by name; several of one name are an error once it is asked for."""
        points: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group) if self.group else ():
            points.setdefault(point.name, []).append(point)
        return dict(sorted(points.items()))

    def __iter__(self) -> Iterator[str]:
        yield from self.entries
        yield from (name for name in self.foreign if name not in self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries or name in self.foreign

    def summary(self, name: str) -> str:
        """The one-line description of `name`; of another package's name, the package."""
        if name in self.entries:
            return self.entries[name].summary
        return f"from the package {_package(self.foreign[name][0])}"

    def load(self, name: str) -> Any:
        """Import and return what `name` stands for.

        Raises:
            RecipeError: for an unknown name, stating the most similar ones; for a name that two packages define; for
                another package's name that cannot be imported.
        """
        points = self.foreign.get(name, [])
        owners = [OWN_PACKAGE] * (name in self.entries) + [_package(point) for point in points]
        if not owners:
            raise RecipeError(f"unknown {self.kind} `{name}` — {nearest(name, self)}")
        if len(owners) > 1:
            raise RecipeError(
                f"{self.kind} `{name}` is defined by the packages {' and '.join(owners)} — uninstall one of them"
            )
        return load(self.entries[name].target) if not points else self._load_foreign(points[0])

    def _load_foreign(self, point: EntryPoint) -> Any:
        try:
            return point.load()
        except Exception as error:  # another package's code may raise anything when it is imported
            raise RecipeError(
                f"{self.kind} `{point.name}` of the package {_package(point)} cannot be imported ({point.value}: "
                f"{type(error).__name__}: {error}) — update or uninstall that package"
            ) from error


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def load(target: str) -> Any:
    """Import and return what a `"module:attribute"` string stands for."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
