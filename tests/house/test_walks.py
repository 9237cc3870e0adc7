"""The walks of the contributing page: another package adds a layout, metric, method and task, and a run uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

CODE = '''
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.layouts.base import Layout
from mllm_tailor.methods.full import Norms
from mllm_tailor.scoring.metrics.base import ByField, Ratio
from mllm_tailor.tasks.answer import Answer


class Shout(Answer):
    """An answer in capital letters."""

    name = "shout"
    metrics = ("first_letter",)

    def labels(self, sample):
        return {"answer": sample.answer.upper()}


class AllNorms(Norms):
    """Norms of the language model and of the projector."""

    default_parts = ("language", "projector")


def _cards(folder):
    return sorted(folder.path.glob("*.card"))


def _read(folder):
    for file in _cards(folder):
        picture, question, answer = file.read_text().split("|")
        media = (Media("image", folder.path / picture),)
        yield Sample(file.stem, media, prompt=question, answer=answer.strip(), source=f"{file}:1")


CARDS = Layout(lambda folder: len(_cards(folder)) > 1, _read)
FIRST_LETTER = ByField(lambda label, reply, kind: Ratio(float(str(label)[:1] == str(reply)[:1]), 1.0))
'''
POINTS = """
[mllm_tailor.layouts]
cards = card_tools:CARDS
[mllm_tailor.metrics]
first_letter = card_tools:FIRST_LETTER
[mllm_tailor.methods]
all_norms = card_tools:AllNorms
[mllm_tailor.tasks]
shout = card_tools:Shout
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A package as pip installs it."""
    folder = tmp_path / "site"
    metadata = folder / "card_tools-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "card_tools.py").write_text(CODE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: card-tools\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(POINTS)
    return folder


@pytest.mark.slow
def test_another_package_adds_a_layout_metric_method_and_task(plugin: Path, tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    for number in range(8):
        Image.new("RGB", (60, 40), (30 * number, 99, 10)).save(cards / f"{number}.png")
        (cards / f"{number}.card").write_text(f"{number}.png|How bright is it?|level {number}")
    recipe = {
        "name": "cards",
        "model": "tiny",
        "data": {"train": str(cards), "held_out": {"fraction": 0.3}, "dev": 0},
        "task": {"shout": {}},
        "method": {"name": "all_norms"},
        "train": {"steps": 2, "batch_size": 2},
        "predict": {"max_new_tokens": 6},
        "output": str(tmp_path / "runs"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(plugin), *sys.path])}
    command = [sys.executable, "-m", "mllm_tailor.cli.main", "run", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "runs" / "cards" / "scores.json").read_text())
    assert "first_letter" in scores["gain"]
    trained = json.loads((tmp_path / "runs" / "cards" / "training.json").read_text())
    assert trained["steps"] == 2
