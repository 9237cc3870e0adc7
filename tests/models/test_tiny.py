"""The untrained model recipes build: the same bits everywhere, and able to learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mllm_tailor.models import load_model
from mllm_tailor.models.bundled.tiny import build_tiny, tiny_folder
from mllm_tailor.models.checkpoint import weight_files


def test_it_is_built_once_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(1)
    folder = tiny_folder()
    assert folder.parent == tmp_path / "cache"
    written = folder.stat().st_mtime_ns
    before = torch.random.get_rng_state()
    (tmp_path / "again").mkdir()
    build_tiny(tmp_path / "again")
    assert torch.equal(before, torch.random.get_rng_state())  # nobody else's chances are moved
    one, other = (next(iter(weight_files(place))).read_bytes() for place in (folder, tmp_path / "again"))
    assert one == other
    assert tiny_folder() == folder and folder.stat().st_mtime_ns == written


@pytest.mark.slow
def test_it_opens_by_name_and_signals_keep_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path))
    model = load_model("tiny", device="cpu")
    assert model.path == "tiny" and model.tile_size == 56 and model.processor.image_seq_length == 4
    with torch.no_grad():
        found = model.model.model.get_image_features(pixel_values=torch.randn(2, 3, 56, 56)).pooler_output
        logits = model.model(input_ids=torch.arange(40)[None]).logits
    assert 0.1 < float(torch.cat(list(found)).std()) < 3 and 0.1 < float(logits.std()) < 3


def test_fresh_filters_see_strokes_before_brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain patch, black or white, leaves most filters at rest; a stroke moves them, in whichever place it lies."""
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path))
    model = load_model("tiny", device="cpu")
    filters = model.model.get_submodule("model.vision_tower.embeddings.patch_embeddings.projection").weight
    plain, stroke = torch.ones(3, 14, 14), torch.zeros(3, 14, 14)
    stroke[:, 6:8] = 1
    seen = [(filters.detach().float() * patch).sum((1, 2, 3)).abs() for patch in (plain, stroke)]
    blind = torch.arange(len(filters)) % 8 != 0
    assert float(seen[0][blind].max()) < 1e-3 < 0.1 < float(seen[1][blind].mean())
    assert float(seen[0][~blind].mean()) > 1
