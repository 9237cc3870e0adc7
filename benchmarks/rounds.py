"""Interleaved rounds of several sides: what each measured, and why one could not run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Measurements:
    """What every side measured, by its key: one entry a round, or an error."""

    found: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    keep: Callable[[], None] = lambda: None  # called after every measurement, to write it down

    def interleave(self, sides: Mapping[str, Callable[[int], dict[str, Any]]], rounds: int, title: str) -> None:
        """Each side once a round, every other round backwards, so that a slow minute does not always hit the same side.

        A round that is there from an earlier call is not measured again, nor is a side that failed.
        """
        for number in range(rounds):
            for key in sides if number % 2 == 0 else reversed(list(sides)):
                done = self.found.setdefault(key, [])
                if key in self.errors or len(done) > number:
                    continue
                print(f"{title}, round {number + 1} of {rounds}: {key}", file=sys.stderr, flush=True)
                try:
                    done.append(sides[key](number))
                except RuntimeError as error:
                    self.errors[key] = str(error)
                    print(error, file=sys.stderr, flush=True)
                self.keep()
