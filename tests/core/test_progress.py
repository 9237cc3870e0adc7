"""Progress is shown by whoever sets a factory, and by nobody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mllm_tailor.core.progress import progress, set_progress_factory, track


class Recorder:
    def __init__(self, events: list[tuple[object, ...]], *start: object) -> None:
        self.events = events
        events.append(start)

    def start(self) -> None:
        self.events.append(("start",))

    def advance(self, count: int = 1) -> None:
        self.events.append(("advance", count))

    def update(self, completed: int, note: str = "", seconds_left: float | None = None) -> None:
        self.events.append(("update", completed, note))

    def stop(self) -> None:
        self.events.append(("stop",))


@pytest.fixture
def events() -> Iterator[list[tuple[object, ...]]]:
    seen: list[tuple[object, ...]] = []
    set_progress_factory(lambda *start: Recorder(seen, *start))
    yield seen
    set_progress_factory(None)


def test_items_are_counted_as_they_are_done(events: list[tuple[object, ...]]) -> None:
    assert list(track("ab", "Reading")) == ["a", "b"]
    assert events == [("Reading", 2, 0), ("start",), ("advance", 1), ("advance", 1), ("stop",)]


def test_work_given_up_is_stopped(events: list[tuple[object, ...]]) -> None:
    with pytest.raises(KeyError), progress("Reading", 3):
        raise KeyError
    assert events[-1] == ("stop",)


def test_nothing_is_shown_without_a_factory(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("ab"), "Reading", 2)) == ["a", "b"]
    assert capfd.readouterr() == ("", "")
