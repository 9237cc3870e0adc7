"""Every family does the whole job from the command line: init, check, run, predict, report, merge and verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import tiny_families
from fixtures.families import ALONE, sound
from fixtures.images import picture
from fixtures.pairs import KINDS as DUAL_ENCODERS
from fixtures.pairs import write_pair_family

from mllm_tailor.cli.app import run_command
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.models.families import FAMILIES

ROWS = 8


def write_rows(folder: Path, kind: str) -> None:
    """Labelled rows of images and audio, as far as the family reads them, and of text alone where it reads that."""
    family = FAMILIES[kind]
    folder.mkdir()
    media = [medium for medium in ("image", "audio") if medium in family.media]
    if not family.compares and kind not in ALONE:
        media.append("text")
    rows: list[dict[str, Any]] = []
    for number in range(ROWS):
        medium = media[number % len(media)]
        row: dict[str, Any] = {"id": f"r{number}"}
        question = "What is this?"
        if medium != "text":
            file = folder / f"{number}.{'png' if medium == 'image' else 'wav'}"
            content = picture(40 + number, 50, number) if medium == "image" else sound(0.4 + number / 10)
            assert content.data is not None
            file.write_bytes(content.data)
            row[f"{medium}s"], question = [file.name], f"<{medium}>{question}"
        row["messages"] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"number {number}"},
        ]
        rows.append(row)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tailor(*arguments: str | Path) -> None:
    assert run_command([str(argument) for argument in arguments]) == 0, arguments


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*tiny_families.RECIPES, *DUAL_ENCODERS])
def test_a_family_does_the_whole_job(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dual = FAMILIES[kind].compares
    (write_pair_family if dual else tiny_families.write_family)(tmp_path / "model", kind)
    write_rows(tmp_path / "data", kind)
    tailor("init", "data")
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    recipe |= {
        "name": "job",
        "model": {"path": "model", "dtype": "float32"},
        "task": "match" if dual else "answer",
        "method": {"name": "lora", "rank": 2, "parts": ["language"]},
        "train": {"steps": 2, "batch_size": 4, "processes": 1},
        "predict": {"max_new_tokens": 4},
        "output": "runs",
    }
    recipe["data"] |= {"held_out": {"fraction": 0.5}, "dev": 0}
    recipe.pop("score", None)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    with torch.random.fork_rng():
        tailor("check", "recipe.yaml")
        tailor("run", "recipe.yaml")
        tailor("report", "runs/job")
        if not dual:
            files = sorted(path for path in Path("data").iterdir() if path.suffix in (".png", ".wav"))[:2]
            tailor("predict", "runs/job", *files, "--out", "new.jsonl")
            assert len(list(read_jsonl(Path("new.jsonl")))) == len(files)
            tailor("verify", "runs/job", "--samples", "2")
        tailor("merge", "runs/job", "merged", "--samples", "1")
    scores = json.loads(Path("runs/job/scores.json").read_text())
    assert scores and Path("runs/job/report.html").is_file() and Path("merged/config.json").is_file()
