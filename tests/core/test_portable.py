"""Nothing needs a call that exists on Linux alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from mllm_tailor.core import machine
from mllm_tailor.synthetic import draw_folder

# What macOS and Windows lack is taken away before anything is imported; /proc is hidden likewise.
OTHER_SYSTEM = """
import os, pathlib, pkgutil, importlib, sys
import psutil
sys.modules["resource"] = None  # psutil itself needs it on Linux
for name in ("sched_getaffinity", "sched_setaffinity", "getpgid", "setsid", "fork"):
    if hasattr(os, name):
        delattr(os, name)
if hasattr(psutil.Process, "cpu_affinity"):
    del psutil.Process.cpu_affinity
read_text, write_text = pathlib.Path.read_text, pathlib.Path.write_text
def hidden(method):
    def call(self, *words, **settings):
        if str(self).startswith("/proc"):
            raise FileNotFoundError(str(self))
        return method(self, *words, **settings)
    return call
pathlib.Path.read_text, pathlib.Path.write_text = hidden(read_text), hidden(write_text)
"""


def on_other_system(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", OTHER_SYSTEM + code], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_core_and_media_import_and_measure_where_linux_calls_are_missing(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    printed = on_other_system(
        "import mllm_tailor.core, mllm_tailor.media\n"
        "for package in (mllm_tailor.core, mllm_tailor.media):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "import torch\n"
        "from PIL import Image\n"
        "from mllm_tailor.core.device import describe_machine, free_memory, peak_memory, watch_memory\n"
        "from mllm_tailor.core.sample import Media\n"
        "from mllm_tailor.data.decode_check import decode_all\n"
        "cpu = torch.device('cpu')\n"
        "with watch_memory(cpu) as memory: kept = bytearray(1 << 26)\n"
        "assert describe_machine()['cpu_cores'] >= 1\n"
        "assert peak_memory(cpu) >= 1 << 26 and free_memory(cpu) > 0 and memory.before > 0\n"
        f"Image.new('RGB', (30, 20)).save({str(picture)!r})\n"
        f"print(decode_all([Media('image', {str(picture)!r})])[0].size)\n"
    )
    assert printed.strip() == "(30, 20)"


@pytest.mark.slow
def test_check_and_run_where_linux_calls_are_missing(tmp_path: Path) -> None:
    """The commands themselves, and the processes that they start: all find the calls removed (`sitecustomize`)."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(OTHER_SYSTEM)
    draw_folder(tmp_path / "receipts", 6, 2, seed=3)
    recipe = {
        "name": "elsewhere",
        "model": "tiny",
        "data": {"train": str(tmp_path / "receipts"), "held_out": {"column": "split", "value": "dev"}, "dev": 0},
        "task": {"extract": {"total": "amount"}},
        "method": {"name": "lora", "rank": 4, "parts": ["language"]},
        "train": {"steps": 2, "batch_size": 2},
        "predict": {"max_new_tokens": 8},
        "output": str(tmp_path / "runs"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code = (
        "import os, sys\n"
        "assert not hasattr(os, 'sched_getaffinity') and sys.modules['resource'] is None\n"
        "from mllm_tailor.cli.app import run_command\n"
        f"for name in ('check', 'run'): assert run_command([name, {str(tmp_path / 'recipe.yaml')!r}]) == 0, name\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "elsewhere" / "report.html").is_file()


def test_peak_memory_covers_what_was_freed() -> None:
    before = machine.peak_memory()
    block = bytearray(os.urandom(1) * (before + (1 << 25) - machine.resident_memory()))
    held = len(block)
    del block
    assert machine.peak_memory() >= before and machine.peak_memory() >= held


def test_cores_follow_the_affinity_of_the_process() -> None:
    cores = psutil.Process().cpu_affinity()
    if len(cores) < 2:
        pytest.skip("one core only")
    psutil.Process().cpu_affinity(cores[:1])
    try:
        assert machine.cpu_count() == 1
    finally:
        psutil.Process().cpu_affinity(cores)
