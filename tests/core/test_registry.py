"""Names of a registry: our own, and those of other packages through entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.registry import Entry, Registry

Install = Callable[[str, str], None]


def registry() -> Registry:
    return Registry("thing", {"ours": Entry("json:dumps", "ours in a line")}, group="mllm_tailor.things")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with entry points on `sys.path`, as pip would."""

    def make(package: str, points: str, code: str = "thing = 42\n") -> None:
        folder = tmp_path / package
        metadata = folder / f"{package}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[mllm_tailor.things]\n{points}\n")
        (folder / f"{package}_code.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, f"{package}_code", raising=False)

    return make


def test_names_of_other_packages_follow_ours_and_load(install: Install) -> None:
    install("strangers", "theirs = strangers_code:thing\nalso = strangers_code:thing")
    table = registry()
    assert list(table) == ["ours", "also", "theirs"] and "theirs" in table
    assert "strangers_code" not in sys.modules, "nothing is imported before it is asked for"
    assert table.load("theirs") == 42
    assert table.summary("theirs") == "from the package strangers" and table.summary("ours") == "ours in a line"


def test_our_name_is_never_shadowed(install: Install) -> None:
    install("rivals", "ours = rivals_code:thing")
    with pytest.raises(RecipeError, match="thing `ours` is defined by the packages mllm-tailor and rivals"):
        registry().load("ours")
    assert list(registry()) == ["ours"]


def test_two_packages_of_one_name_are_both_stated(install: Install) -> None:
    install("first", "theirs = first_code:thing")
    install("second", "theirs = second_code:thing")
    with pytest.raises(RecipeError, match=r"(first and second|second and first) — uninstall one"):
        registry().load("theirs")


def test_a_package_that_cannot_be_imported_is_stated(install: Install) -> None:
    install("broken", "theirs = broken_code:thing\nmissing = broken_code:absent", "thing = 1\nif True: 1 / 0\n")
    with pytest.raises(RecipeError, match=r"`theirs` of the package broken cannot be imported .* ZeroDivisionError"):
        registry().load("theirs")
    install("partial", "absent = partial_code:absent")
    with pytest.raises(RecipeError, match="`absent` of the package partial cannot be imported"):
        registry().load("absent")


def test_unknown_names_state_the_nearest_also_of_other_packages(install: Install) -> None:
    install("strangers", "theirs = strangers_code:thing")
    with pytest.raises(RecipeError, match="unknown thing `theirz` — did you mean `theirs`"):
        registry().load("theirz")
    assert Registry("thing", {}).foreign == {}
