"""What a person reads: nothing is wrapped or cut at any width, nothing is read as markup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from mllm_tailor.commands.console import command, show, show_json, use_json
from mllm_tailor.core.terminal import Table, fit_widths

DEEP = "/tmp/" + "/".join(f"folder {number} with a long name" for number in range(9)) + "/recipe.yaml"
REMARK = "the file is [bold]cut off[/] and nothing can be read from its second half"
WIDTHS = (20, 40, 80, 200)


@pytest.mark.parametrize("width", WIDTHS)
def test_paths_and_commands_are_never_wrapped(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show(("Ready.", "bold green"), f" Next: {command('run', DEEP, 'train.epochs=1')}")
    assert capsys.readouterr().out == f"Ready. Next: tailor run '{DEEP}' train.epochs=1\n"


def test_nothing_is_markup_or_an_escape(capsys: pytest.CaptureFixture[str]) -> None:
    show("runs/[bold]a[/] :smile: \x1b[31mred", ("[red]b", "bold"))
    assert capsys.readouterr().out == "runs/[bold]a[/] :smile: �[31mred[red]b\n"


def table() -> Table:
    shown = Table(f"[red]{DEEP}", "", "score", "why it was left out", numbers=False)
    shown.add_row(DEEP, "10.0", REMARK)
    shown.add_row("b", "9.5", "")
    return shown


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_keep_names_whole_and_break_between_words_only(width: int) -> None:
    console = Console(width=width, record=True, soft_wrap=True)
    with console.capture() as captured:
        console.print(table())
    lines = captured.get().splitlines()
    assert lines[0] == f"[red]{DEEP}"
    assert sum(DEEP in line for line in lines[1:]) == 1
    words = captured.get().split()
    assert set(REMARK.split()) <= set(words)


@pytest.mark.parametrize(("width", "used"), [(80, 80), (200, 101)])
def test_tables_fit_the_terminal_where_they_can(width: int, used: int) -> None:
    shown = Table("", "name", "remark", numbers=False)
    shown.add_row("receipt-17.png", "word " * 17)
    console = Console(width=width, soft_wrap=True)
    with console.capture() as captured:
        console.print(shown)
    assert max(len(line.rstrip()) for line in captured.get().splitlines()) <= used


def test_numbers_are_never_wrapped_but_their_headings_are() -> None:
    shown = Table("", "", "tree edit similarity")
    shown.add_row("base", "+0.5 to +2.8")
    console = Console(width=10, soft_wrap=True)
    with console.capture() as captured:
        console.print(shown)
    assert "+0.5 to +2.8" in captured.get() and "similarity\n" in captured.get()


def test_widths_take_from_the_widest_first() -> None:
    assert fit_widths([(5, 5), (3, 20), (4, 12)], 25) == [5, 10, 10]
    assert fit_widths([(5, 5), (30, 40)], 20) == [5, 30]  # too narrow: nothing is cut


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    use_json(as_json=True)
    show("a line for people")
    show_json({"path": Path("runs/ä [b]"), "scores": (1.5, float("nan")), 3: {"x": float("inf")}})
    assert json.loads(capsys.readouterr().out) == {"path": "runs/ä [b]", "scores": [1.5, None], "3": {"x": None}}
    use_json(as_json=False)
    show_json({})
    assert capsys.readouterr().out == ""
