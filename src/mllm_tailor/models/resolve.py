"""Resolve the name of a model (`embedded`, `tiny`, a folder or a hub id) to a folder with its checkpoint."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from mllm_tailor.core.errors import ModelError
from mllm_tailor.models.bundled.tiny import tiny_folder
from mllm_tailor.models.checkpoint import DUPLICATES, Checkpoint, read_checkpoint

BUNDLED = ("embedded", "tiny")
EMBEDDED = Path(__file__).parent / "bundled" / "embedded"
# Never *.bin or *.pt. conversation.py is never run: an original InternVL keeps its system text in it.
DOWNLOADED = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "conversation.py")


def find_checkpoint(path: str | Path, revision: str | None = None) -> Checkpoint:
    """The checkpoint called `embedded` or `tiny`, in a folder, or on the hub (downloaded once, then read from a cache).

    Raises:
        ModelError: naming the file and what to do, for anything missing, damaged or unsafe.
    """
    name = str(path)
    folder = _bundled_folder(name) or Path(name)
    if not folder.is_dir():
        folder = _download(name, revision)
        revision = folder.name  # the hub's cache names a folder by its commit
    return read_checkpoint(folder, name, revision)


def _bundled_folder(name: str) -> Path | None:
    if name == "embedded":
        return EMBEDDED
    return tiny_folder() if name == "tiny" else None


def _download(name: str, revision: str | None) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"{name}: no such folder — name an existing one, a hub id (owner/name), `embedded` or `tiny`")
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(DOWNLOADED), ignore_patterns=[DUPLICATES])
        )
    except LocalEntryNotFoundError:
        raise ModelError(f"{name}: not in the local cache and the hub cannot be reached — go online once") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            f"{name}: the hub has no such model, or you have no access — check the name and log in"
        ) from None
    except (HTTPError, OSError) as error:  # a broken connection raises the first
        raise ModelError(
            f"{name}: download failed ({type(error).__name__}) — run again; complete files are kept"
        ) from error
