"""Fixtures shared by all tests: where real data lies, and tiny models.

Imports stay light, as the main process of pytest-xdist loads this file and runs no test: torch is loaded by the tests.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.browser import Browser, find_chromium
from fixtures.real_data import real_data
from hypothesis import settings

from mllm_tailor.commands.console import use_json
from mllm_tailor.core.progress import set_progress_factory

# Rounding depends on the number of threads where a processor has wide vectors, and tests compare bits of processes:
# one thread in each, before torch is loaded. The cores are used by running files of tests side by side.
os.environ["OMP_NUM_THREADS"] = "1"

# No assertion depends on how busy the machine is.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# What a terminal's settings would add to output that tests read.
for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR_FORCE", "TAILOR_LOG"):
    os.environ.pop(variable, None)


@pytest.fixture(autouse=True)
def library_output() -> Iterator[None]:
    """What a command sets up for its output is undone, so that no test depends on the one before."""
    logger = logging.getLogger("mllm_tailor")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    set_progress_factory(None)
    use_json(as_json=False)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium, driven by keys and scripts."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def sroie() -> Path:
    """The 626 labelled SROIE receipts."""
    return real_data("sroie")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted copies go."""
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of families made so far (fixtures.families.family_folder), one folder each."""
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random InternVL (a tile of 56 pixels is 4 tokens; 193,000 weights), saved as transformers does."""
    import torch

    from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_internvl(
            tokenizer,
            vision_width=32,
            vision_layers=2,
            text_width=64,
            text_layers=2,
            image_size=56,
            head_width=16,
            tie_embeddings=False,
        )
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(4)  # as initialised, a tiny model repeats one token whatever it is shown
    save(model, build_processor(tokenizer, 56, max_tiles=4), folder)
    return folder
