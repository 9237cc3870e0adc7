"""`tailor demo --loop` on a tiny random model and few receipts: every step follows from the one before."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm_tailor.cli.app import run_command
from mllm_tailor.commands import demo_loop
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.data import read_samples
from mllm_tailor.data.reviews.store import ReviewStore
from mllm_tailor.synthetic import draw_folder


@pytest.mark.slow
def test_new_receipts_leave_the_labelled_ones_with_their_labels(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data", 3, 1, seed=1)
    demo_loop.set_aside(tmp_path / "data", tmp_path / "new", 2)
    rows = [row for _, row in read_jsonl(tmp_path / "data" / "metadata.jsonl")]
    assert [row["split"] for row in rows] == ["train", "dev"]
    assert len(read_samples(tmp_path / "data").samples) == 2
    names = {name: sorted(file.stem for file in (tmp_path / "new" / name).iterdir()) for name in ("images", "entities")}
    assert names["images"] == names["entities"] == ["1-0001", "1-0002"]


@pytest.mark.slow
def test_the_loop_tunes_twice_and_compares(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("LABELLED", 8), ("NEW", 3), ("HELD_OUT", 3)):
        monkeypatch.setattr(demo_loop, name, value)
    settings = [f"model={tiny_model_folder}", "train.epochs=1", "train.batch_size=4", "predict.max_new_tokens=16"]
    assert run_command(["demo", "--loop", "--out", str(tmp_path), *settings]) == 0
    output = capsys.readouterr().out
    progress = ReviewStore(tmp_path / "demo-loop-review" / "corrections.db").progress()
    assert (progress.documents, progress.waiting, progress.done) == (3, 0, 3)
    assert "also learned 3 documents of demo-loop-review" in output
    second = tmp_path / "demo-loop-with-3"
    replies = [
        (folder / "predictions" / "base_constrained.jsonl").read_bytes() for folder in (second, tmp_path / "demo-loop")
    ]
    assert replies[0] == replies[1]  # taken over
