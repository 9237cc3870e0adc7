"""Importing the package changes nothing in the process that imports it."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mllm_tailor.cli.import_scan import keep_scan
from mllm_tailor.cli.loading import LoadingFinder, linear_sum_assignment, with_kept_scan, without_compiler
from mllm_tailor.cli.startup import import_at_start
from mllm_tailor.core.io import write_atomic

SCRIPT = """
import hashlib, importlib, json, logging, os, pkgutil, sys, warnings

# What our modules import from elsewhere comes first: its side effects are its own.
import accelerate, bitsandbytes, huggingface_hub, jinja2, llguidance, numpy, peft, PIL.Image, PIL.ImageFile, psutil
import pyarrow, pydantic
import fastapi, fastapi.responses, prometheus_client, starlette.routing, uvicorn, httpx2
import rich.console, tensorboard, tokenizers, torch, transformers, typer
import av, pypdfium2, soundfile
import transformers.integrations.sdpa_attention, transformers.masking_utils, transformers.models.auto.modeling_auto


def state():
    loggers = {name: logger.level for name, logger in logging.root.manager.loggerDict.items()
               if isinstance(logger, logging.Logger)}
    return {
        "environment": dict(os.environ),
        "warning filters": [repr(entry) for entry in warnings.filters],
        "logger levels": loggers | {"root": logging.root.level},
        "handlers": [repr(handler) for handler in logging.root.handlers],
        "attention": {name: f"{function.__module__}.{function.__qualname__}"
                      for name, function in transformers.AttentionInterface._global_mapping.items()},
        "masks": sorted(transformers.AttentionMaskInterface._global_mapping),
        "PEFT types": sorted(peft.PeftType.__members__),
        "PEFT maps": sorted(map(str, peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING)),
        "torch.compile": f"{torch.compile.__module__}.{torch.compile.__qualname__}",
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "gradients": torch.is_grad_enabled(),
        "default dtype": str(torch.get_default_dtype()),
        "random state": [hashlib.sha256(torch.get_rng_state().numpy()).hexdigest(),
                         hashlib.sha256(numpy.random.get_state()[1]).hexdigest()],
        "excepthook": repr(sys.excepthook),
        "path": list(sys.path),
        "Pillow": [PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES],
    }


before = state()
import mllm_tailor

names = [module.name for module in pkgutil.walk_packages(mllm_tailor.__path__, "mllm_tailor.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
after = state()
added = after["logger levels"].keys() - before["logger levels"].keys()
for name in added:  # a logger that only exists, at the default level, changes nothing
    if after["logger levels"][name] == logging.NOTSET:
        del after["logger levels"][name]
print(json.dumps({"modules": len(names), "changed": {
    key: [before[key], after[key]] for key in before if before[key] != after[key]
}}))
"""


def test_a_library_is_loaded_without_torch_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asks_for_compiler.py").write_text(
        "import torch\ntry:\n    size = torch.compile(len)\nexcept TypeError:\n    size = len\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    compiler = torch.compile
    monkeypatch.setattr(sys, "meta_path", [LoadingFinder({"asks_for_compiler": without_compiler}), *sys.meta_path])
    library = importlib.import_module("asks_for_compiler")
    del sys.modules["asks_for_compiler"]
    assert library.size is len and torch.compile is compiler
    assert library.__loader__ is library.__spec__.loader and library.__file__ == str(tmp_path / "asks_for_compiler.py")
    finder = LoadingFinder({"no_such_library_anywhere": without_compiler})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_library_anywhere")


def test_garbage_is_collected_from_where_a_command_begins() -> None:
    """Where collection was on, it stays as it was; where the entry has switched it off, it begins after the import."""
    frozen = gc.get_freeze_count()
    import_at_start("mllm_tailor.core.sample")
    assert gc.isenabled() and gc.get_freeze_count() == frozen
    gc.disable()
    try:
        import_at_start("mllm_tailor.core.sample")
        assert gc.isenabled() and gc.get_freeze_count() > frozen
    finally:
        gc.enable()
        gc.unfreeze()


def test_what_transformers_finds_in_its_files_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache gives what was found, until the package is installed anew, and never for a folder without a record."""
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    models = tmp_path / "site" / "somelib" / "models"
    models.mkdir(parents=True)
    found = {"bert": {frozenset(): {"config": {"A", "B"}}, frozenset({"torch", "vision"}): {"modeling": {"C"}}}}
    asked: list[object] = []
    scan = keep_scan(lambda path: asked.append(path) or found)
    assert scan(models) == found and scan(models / "__init__.py") == found and len(asked) == 2
    assert not (tmp_path / "cache").exists(), "an editable installation is searched each time"
    record = tmp_path / "site" / "somelib-1.0.dist-info" / "RECORD"
    write_atomic(record, "somelib/__init__.py")
    assert scan(models) == found and scan(str(models / "__init__.py")) == found and len(asked) == 3
    assert scan(models / "bert") == found and len(asked) == 4
    write_atomic(record, "somelib/__init__.py and more")
    assert scan(models) == found and scan(models) == found and len(asked) == 5
    (tmp_path / "cache" / "imports" / "somelib.json").write_text("[damaged]")
    assert scan(models) == found and len(asked) == 6


def test_the_hooks_fit_the_installed_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own search and the cache agree, and a loss loaded without SciPy matches boxes when it is called."""
    from transformers import models
    from transformers.utils import import_utils

    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path))
    original = import_utils.create_import_structure_from_path
    monkeypatch.setattr(import_utils, "create_import_structure_from_path", original)
    with with_kept_scan(import_utils):
        pass
    folder = Path(models.__file__).parent
    kept = import_utils.create_import_structure_from_path(folder)
    assert import_utils.create_import_structure_from_path(str(folder)) == kept == original(str(folder)) and kept

    monkeypatch.setattr(sys, "meta_path", [LoadingFinder(), *sys.meta_path])
    name = "transformers.loss.loss_for_object_detection"
    monkeypatch.delitem(sys.modules, name, raising=False)
    loss = importlib.import_module(name)
    assert loss.linear_sum_assignment is linear_sum_assignment and loss.is_scipy_available()
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]])
    outputs = {"logits": torch.zeros(1, 2, 2), "pred_boxes": box[None]}
    ((rows, columns),) = loss.HungarianMatcher()(
        outputs, [{"class_labels": torch.tensor([0, 0]), "boxes": box.flip(0)}]
    )
    assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]


@pytest.mark.slow
def test_prediction_and_check_load_what_they_need(tmp_path: Path) -> None:
    """No library of other commands, and SciPy only where a number is computed with it."""
    unwanted = ("scipy.optimize", "scipy.special", "pandas", "datasets", "matplotlib", "av", "ray", "vllm", "fastapi",
                "uvicorn", "torchvision", "tensorboard")  # fmt: skip
    code = (
        "import sys; from mllm_tailor.cli.main import prepare_imports; prepare_imports();"
        "import mllm_tailor.commands.predict, mllm_tailor.commands.check;"
        f"loaded = set({unwanted}) & set(sys.modules); assert not loaded, loaded; assert 'scipy' in sys.modules"
    )
    environment = os.environ | {"TAILOR_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment)
    assert (tmp_path / "imports" / "transformers.json").is_file()


@pytest.mark.slow
def test_importing_every_module_changes_nothing() -> None:
    """Environment, warnings, logging, torch, transformers, PEFT and Pillow are as before."""
    kept = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "LANG", "OMP_NUM_THREADS")  # not what this process has set
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["modules"] > 200
    assert report["changed"] == {}
