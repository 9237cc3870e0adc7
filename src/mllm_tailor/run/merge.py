"""`tailor merge`: one plain transformers folder out of base and adapter."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.progress import console
from mllm_tailor.methods import merge
from mllm_tailor.run.folder import open_run
from mllm_tailor.run.predict import open_tuned


def merge_run(path: Path, out: Path) -> None:
    """Merge exactly (a quantised base is dequantised first) and save safetensors with processor and template.

    Raises:
        RunError: when `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty — name a new folder")
    run = open_run(path)
    model = open_tuned(run.recipe(), run.adapter)
    merge(model)
    model.save(out)
    console.print(f"Merged model in {out}. Open it anywhere with transformers, or here with model: {out}")
