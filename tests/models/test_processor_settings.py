"""Settings of a processor of another kind are named when a model is opened, before anything is read with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mllm_tailor.core.errors import ModelError
from mllm_tailor.models.load import load_without_weights


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_processor": {"image_mean": True}}, "`image_mean`"),
        ({"image_processor": {"image_mean": [0.5, 0.5]}}, "`image_mean`"),
        ({"image_processor": {"image_std": [0.2, 0.2, 0]}}, "`image_std`"),
        ({"image_processor": {"min_patches": "2"}}, "`min_patches`"),
        ({"image_processor": {"max_patches": 1.5}}, "`max_patches`"),
        ({"image_processor": {"size": {"height": 29, "width": 29}}}, "belong to different checkpoints"),
        ({"image_seq_length": 7}, "belong to different checkpoints"),
        ({"image_seq_length": 4.0}, "`image_seq_length`"),
        ({"use_thumbnail": "yes"}, "`use_thumbnail`"),
    ],
)
def test_a_setting_of_another_kind_is_named(
    changes: dict[str, Any], words: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    for name, value in changes.items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=words):
        load_without_weights(folder)
