"""A finished run copied to a store: its manifest last, so that a reader finds a whole run or none."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from mllm_tailor.core.manifest import MANIFEST
from mllm_tailor.core.remote import copy_of, fetch_each, publish, publish_all, withdraw
from mllm_tailor.run.peers import follows
from mllm_tailor.run.run_dir import RunFolder, finished

logger = logging.getLogger(__name__)
LEFT_OUT = ("checkpoints", "features")  # what only the training needs


def check_store(store: str | None, name: str) -> None:
    """Write and remove a small file where the run of this name will be published: better now than after the training.

    Raises:
        StorageError: for a store that cannot be written.
    """
    if store is None or follows():
        return
    url = f"{_url_of_run(store, name)}/.check"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "check"
        file.write_text("tailor checks that it can write here\n", encoding="utf-8")
        publish(file, url)
    withdraw(url)


def publish_run(folder: RunFolder, store: str | None) -> str | None:
    """Copy the run into the folder at the URL `store`, if it is finished and not there yet. Returns the URL of the run.

    Raises:
        StorageError: for a store that cannot be written.
    """
    if store is None or follows() or not finished(folder):
        return None
    url = _url_of_run(store, folder.path.name)
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


def _url_of_run(store: str, name: str) -> str:
    return f"{store.rstrip('/')}/{name}"


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
