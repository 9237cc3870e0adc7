"""The command line: instant help, one clear message for what a user can mend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mllm_tailor.cli.app import app


def tailor(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mllm_tailor.cli.main", *words], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from mllm_tailor.cli.app import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "command", [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0 and len(result.output.splitlines()) > 5


def test_a_mendable_fault_is_one_message_without_traceback(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: none\ntask: {extract: {total: string}}\ntrain: {epoch: 1}\n")
    result = tailor("run", str(recipe))
    assert result.returncode == 2
    assert "unknown setting `train.epoch` — did you mean `epochs`" in result.stderr
    assert "Traceback" not in result.stderr


def test_version() -> None:
    assert tailor("--version").stdout.startswith("mllm-tailor ")
