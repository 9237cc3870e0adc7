"""The command line: instant help, one clear message for every failure, nothing on standard output but the result."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from fixtures import commands
from typer.testing import CliRunner

from mllm_tailor.cli.app import RETIRED_OPTIONS, app, run_command
from mllm_tailor.cli.console import LINE_EVERY, ProgressBar, ProgressLines, console, set_up_output

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def tailor(*words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mllm_tailor.cli.main", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=900,
        env=os.environ | variables,
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from mllm_tailor.cli.app import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0 and len(result.output.splitlines()) > 5


def test_help_names_every_command_with_its_whole_summary() -> None:
    """A summary that is too long for a line would be cut with dots."""
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
    table = result.output.split("Commands:")[1]
    assert "..." not in table
    assert [line.split()[0] for line in table.splitlines() if line.strip()] == COMMANDS


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_commands_in_help_are_never_wrapped(width: str) -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": width}).output
    assert "tailor run recipe.yaml train.epochs=5\n" in shown


@pytest.mark.slow
@pytest.mark.parametrize("width", ["40", "200"])
def test_a_user_error_is_one_message_without_traceback(tmp_path: Path, width: str) -> None:
    folder = tmp_path / "a folder [red] with a name that is longer than a line of the terminal"
    folder.mkdir()
    recipe = folder / "r.yaml"
    recipe.write_text("data: none\ntask: {extract: {total: string}}\ntrain: {epoch: 1}\n")
    result = tailor("run", str(recipe), COLUMNS=width)
    assert result.returncode == 2 and result.stdout == ""
    assert "unknown setting `train.epoch` — did you mean `epochs`" in result.stderr
    assert str(recipe) in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_mistyped_command_or_option_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["chekc", "x"]) == 2
    assert "Did you mean 'check'" in capsys.readouterr().err
    assert run_command(["predict", "--unconstraned", "x"]) == 2
    assert "did you mean `--unconstrained`?" in capsys.readouterr().err
    assert run_command(["run"]) == 2
    assert "RECIPE" in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new"), RETIRED_OPTIONS.items())
def test_retired_options_name_their_successor(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["predict", "runs/x", "a.png", old]) == 2
    assert capsys.readouterr().err == f"Error: `{old}` is now `{new}`\n"


def test_failures_of_the_system_are_messages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "/data/[red]run/adapter")

    monkeypatch.setattr("mllm_tailor.commands.list.list_models", full)
    assert run_command(["models"]) == 2
    assert capsys.readouterr().err.startswith("Error: /data/[red]run/adapter: No space left on device")


def test_version() -> None:
    assert tailor("--version").stdout.startswith("mllm-tailor ")


@pytest.mark.slow
def test_completion_scripts_and_words() -> None:
    shown = tailor("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_TAILOR_COMPLETE" in shown.stdout
    words = tailor(_TAILOR_COMPLETE="complete_bash", COMP_WORDS="tailor comp", COMP_CWORD="1")
    assert words.stdout.split() == ["compare", "compare-methods"]


def test_ctrl_c_during_imports_is_quiet(tmp_path: Path) -> None:
    """An import that never ends, and guards itself against every error, stands for slow and careful ones."""
    (tmp_path / "typer").mkdir()
    (tmp_path / "typer" / "__init__.py").write_text(
        "import time\n"
        "try:\n    print('importing', flush=True)\n    time.sleep(60)\n"
        "except BaseException:\n    time.sleep(60)\n"
    )
    source = Path(sys.modules["mllm_tailor"].__file__ or "").parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mllm_tailor.cli.main", "methods"],
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # the suite may run in a background job
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 130 and "Traceback" not in errors and "Interrupted" in errors


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "output")
    command = commands.start("methods", errors=tmp_path / "errors", output=tmp_path / "output")
    (tmp_path / "output").open("rb").close()  # waits for the writer
    command.wait()
    assert command.errors.read_text() == ""


@pytest.mark.slow
def test_nothing_breaks_where_the_terminal_has_another_encoding() -> None:
    result = tailor("run", "none.yaml", PYTHONIOENCODING="ascii")
    assert result.returncode == 2 and result.stderr.startswith("Error: none.yaml: ") and "?" in result.stderr


def test_verbosity_chooses_what_the_log_shows(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("mllm_tailor.run.anything")

    def shown(verbosity: int, level: str | None = None) -> str:
        set_up_output(verbosity, level)
        logger.debug("a detail")
        logger.info("a remark about [red]runs/a[/]")
        logger.warning("a warning")
        logger.error("an error")
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    remark = "a remark about [red]runs/a[/]\na warning\nan error\n"
    assert shown(0) == shown(0, "info") == remark
    assert shown(1) == shown(0, "debug") == "mllm_tailor.run.anything: a detail\n" + remark
    assert shown(-1) == "a warning\nan error\n"
    assert shown(-2) == shown(-5) == "an error\n"
    with pytest.raises(ValueError, match="loud"):
        set_up_output(0, "loud")


@pytest.mark.parametrize("words", [["-q", "methods"], ["methods", "-q"], ["methods", "--quiet"]])
def test_verbosity_stands_before_or_after_the_command(words: list[str]) -> None:
    assert run_command(words) == 0
    assert logging.getLogger("mllm_tailor").level == logging.WARNING


def test_progress_without_a_terminal_is_a_line_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = ProgressLines("Training", 100, 10, clock=lambda: now[0])
    lines.start()
    for step in range(11, 101):
        now[0] += LINE_EVERY / 10
        lines.update(step, f"loss 0.{step:03}")
    lines.stop()
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 9
    assert shown[0] == "Training: 20 of 100, loss 0.020, 4 min left"
    assert shown[-2] == "Training: 90 of 100, loss 0.090, less than a minute left"


def test_time_left_is_the_one_that_the_work_states(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 120)
    now = [0.0]
    lines = ProgressLines("Training", 100, 0, clock=lambda: now[0])
    now[0] = LINE_EVERY
    lines.update(1, "loss 0.5", seconds_left=600)
    assert capsys.readouterr().err == "Training: 1 of 100, loss 0.5, 10 min left\n"
    bar = ProgressBar("Training", 100, 0)
    bar.update(1, "loss 0.5", seconds_left=600)
    with console.capture() as shown:
        console.print(bar._bar)
    assert "left 0:10:00" in shown.get()


def test_progress_of_unknown_length_counts(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = ProgressLines("Reading", None, 0, clock=lambda: now[0])
    now[0] = LINE_EVERY
    lines.advance(3)
    assert capsys.readouterr().err == "Reading: 3\n"
