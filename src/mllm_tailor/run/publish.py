"""A finished run copied to a store: its manifest last, so that a reader finds a whole run or none."""

from __future__ import annotations

import logging
from pathlib import Path

from mllm_tailor.core.manifest import MANIFEST
from mllm_tailor.core.remote import copy_of, fetch_each, publish_all, withdraw
from mllm_tailor.run.run_dir import RunFolder, finished

logger = logging.getLogger(__name__)
LEFT_OUT = ("checkpoints", "features")  # what only the training needs


def publish_run(folder: RunFolder, store: str | None) -> str | None:
    """Copy the run into the folder at the URL `store`, if it is finished and not there yet. Returns the URL of the run.

    Raises:
        StorageError: for a store that cannot be written.
    """
    if store is None or not finished(folder):
        return None
    url = f"{store.rstrip('/')}/{folder.path.name}"
    files = {f"{url}/{file.relative_to(folder.path).as_posix()}": file for file in _files(folder.path)}
    manifests = {name: file for name, file in files.items() if file.name == MANIFEST}
    if all(map(_is_there, manifests, manifests.values())):
        logger.info("%s holds this run already", url)
        return url
    for name in manifests:
        withdraw(name)
    publish_all({name: file for name, file in files.items() if name not in manifests}, f"Publishing {url}")
    publish_all(manifests, f"Publishing {url}")
    logger.info("Published: %s", url)
    return url


def _is_there(url: str, file: Path) -> bool:
    copy = copy_of(url)
    return not fetch_each([copy]) and copy.read_bytes() == file.read_bytes()


def _files(folder: Path) -> list[Path]:
    """The files of a run, those of its stages and folds included; no locks, checksums of growing files and links."""
    chosen = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in LEFT_OUT or path.is_symlink():
            continue
        chosen += _files(path) if path.is_dir() else [path]
    return chosen
