"""`tailor draw`: labelled data that the project draws itself."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.commands.console import show
from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.synthetic.folder import draw_folder, draw_folder_with_items
from mllm_tailor.synthetic.kitchen import draw_kitchen

SETS = {"receipts": draw_folder, "receipts_with_items": draw_folder_with_items, "kitchen": draw_kitchen}


def draw_set(name: str, folder: Path, train: int, held_out: int, seed: int) -> None:
    """Draw a set into a new folder.

    Raises:
        DataError: for an unknown set, or a folder that holds something.
    """
    if name not in SETS:
        raise DataError(f"{name}: no drawn set — {nearest(name, SETS)}")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds files already — name a new folder")
    SETS[name](folder, train, held_out, seed)
    show(f"{train} training and {held_out} held-out samples of `{name}` in {folder}")
