"""Importing the package changes nothing in the process that imports it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mllm_tailor.cli.uncompiled import UncompiledFinder

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
    monkeypatch.setattr(sys, "meta_path", [UncompiledFinder("asks_for_compiler"), *sys.meta_path])
    library = importlib.import_module("asks_for_compiler")
    del sys.modules["asks_for_compiler"]
    assert library.size is len and torch.compile is compiler
    assert library.__loader__ is library.__spec__.loader and library.__file__ == str(tmp_path / "asks_for_compiler.py")
    monkeypatch.setattr(sys, "meta_path", [UncompiledFinder("no_such_library_anywhere"), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_library_anywhere")


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
