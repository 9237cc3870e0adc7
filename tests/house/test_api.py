"""The Python API: the page's code runs, names load late, the example package plugs in, the notebook runs."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mllm_tailor as tailor
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.synthetic import draw_folder

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
LABELS = {"a": {"total": "9.00", "date": "x"}, "b": {"total": "7.00", "date": "y"}}


@pytest.mark.slow
def test_importing_the_package_loads_nothing_heavy_and_names_are_there() -> None:
    code = (
        "import sys, mllm_tailor as tailor;"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'PIL', 'rich'} & set(sys.modules); assert not heavy;"
        "assert set(tailor.__all__) == set(dir(tailor)) and tailor.Recipe and tailor.TailorError;"
        "from mllm_tailor.commands import compare, draw, init, list, review, score, verify_url;"
        "heavy = {'torch', 'transformers', 'peft', 'scipy.special', 'scipy.optimize', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)
    for name in tailor.__all__:
        assert getattr(tailor, name) is not None
    with pytest.raises(AttributeError, match="tunes"):
        _ = tailor.tunes


def test_the_types_name_what_the_package_exports() -> None:
    stub = (REPOSITORY / "src" / "mllm_tailor" / "__init__.pyi").read_text(encoding="utf-8")
    assert sorted([*re.findall(r" as (\w+)$", stub, re.M), "__version__"]) == sorted(tailor.__all__)


def test_scores_follow_ids_in_any_order() -> None:
    predictions = [Prediction("b", "", {"total": "7.00", "date": "y"}), Prediction("a", "", {"total": "9.00"})]
    scores = tailor.score(predictions, LABELS, metrics=["exact"])
    assert scores.values() == {"exact": 75.0} and scores.ids == ("a", "b")
    with pytest.raises(RunError, match="b: has no prediction"):
        tailor.score(predictions[1:], LABELS)
    with pytest.raises(RunError, match="b: has no label"):
        tailor.score(predictions, {"a": LABELS["a"]})
    with pytest.raises(RunError, match="same id"):
        tailor.score([predictions[0]] * 2, LABELS)


def test_what_is_no_run_or_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tailor.RunError, match="no run"):
        tailor.load_run(tmp_path)
    with pytest.raises(tailor.RecipeError, match="did you mean `extract`"):
        tailor.tune({"data": "x", "task": "extrct"})
    with pytest.raises(tailor.RecipeError, match=r"none\.yaml"):
        tailor.check(tmp_path / "none.yaml")


@pytest.mark.slow
def test_the_page_runs_and_the_library_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    draw_folder(tmp_path / "receipts", 6, 3, seed=3)
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    code = code.replace('model="embedded"', 'model="tiny"').replace('"epochs": 1', '"steps": 2')
    said: list[object] = []
    names: dict[str, Any] = {"print": lambda *values: said.extend(values)}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert "RunScored" in said and tmp_path / "runs/receipts/report.html" in [
        Path(str(item)).resolve() for item in said
    ]
    predictions = names["predictions"]
    assert len(predictions) == 9
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_example_package_adds_a_metric_and_a_layout(tmp_path: Path) -> None:
    source = tmp_path / "plugin"
    shutil.copytree(EXAMPLES / "plugin", source)
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(source)], check=True, capture_output=True, timeout=900)
    notes = tmp_path / "notes"
    notes.mkdir()
    Image.new("RGB", (8, 8)).save(notes / "cat.png")
    (notes / "cat.note").write_text("a cat\n")
    code = (
        "from mllm_tailor.data import read_samples; from mllm_tailor.scoring import METRICS;"
        f"data = read_samples({str(notes)!r}); (sample,) = data.samples;"
        "assert (data.layout, sample.answer) == ('notes', 'a cat');"
        "assert METRICS.load('first_letter').better == 'higher'"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=900)


def test_the_library_logs_under_its_own_name() -> None:
    """An application hears the library by one logger, and nothing is set up for it."""
    assert logging.getLogger("mllm_tailor").handlers == []


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    notebook = nbformat.read(EXAMPLES / "receipts.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # what it shows is made by who runs it
    for cell in notebook.cells:  # as on the page above: the embedded model takes a minute more
        cell.source = cell.source.replace('model="embedded"', 'model="tiny"').replace('"steps": 6', '"steps": 2')
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    assert (tmp_path / "runs" / "receipts" / "report.html").is_file()
