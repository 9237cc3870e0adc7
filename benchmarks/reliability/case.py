"""One bad input: the files it changes in a copy of the workspace, and what is done with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reliability.forked import Ended, Limits, run
from reliability.workspace import copy_workspace

LIMITS = Limits(seconds=1800, memory=6 * 2**30)


@dataclass(frozen=True)
class Case:
    """A bad input. `work`: a command line, or a function of the folder."""

    name: str
    work: tuple[str, ...] | Callable[[], object]
    files: Mapping[str, bytes] = field(default_factory=dict)  # relative path -> content
    needs: tuple[str, ...] = ()  # parts of the workspace that are copied
    arrange: Callable[[Path], object] | None = None  # further changes of the copy


def try_case(case: Case, workspace: Path, folder: Path) -> Ended:
    """Run one case in a fresh folder, which is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    copy_workspace(workspace, folder, *case.needs)
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link to the file of the workspace
        path.write_bytes(content)
    if case.arrange is not None:
        case.arrange(folder)
    ended = run(case.work, folder, limits=LIMITS)
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            os.chmod(path, 0o755)
    shutil.rmtree(folder, ignore_errors=True)
    return ended
