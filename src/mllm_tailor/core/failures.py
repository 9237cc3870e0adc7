"""Failures of the machine as messages: a full disk, a folder that cannot be written, no memory or file handles left.

One boundary, `as_messages`, stands round a whole command or call of the Python API; code inside lets errors pass.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from mllm_tailor.core.errors import StorageError, TailorError

AGAIN = "then run the same command again; what was finished is kept"
FIXES = {
    errno.ENOSPC: f"make room on this disk, {AGAIN}",
    errno.EDQUOT: f"your quota is used up: make room, {AGAIN}",
    errno.EROFS: "this file system cannot be written: name another place",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions of the file and its folder",
    errno.ENAMETOOLONG: "shorten the name",
    errno.EMFILE: f"too many open files: raise the limit (`ulimit -n`), {AGAIN}",
    errno.ENFILE: f"too many open files on this machine: close other programs, {AGAIN}",
    errno.EIO: f"the disk cannot be read or written here: check it, {AGAIN}",
    errno.ENOTDIR: "a file stands where a folder is needed: name another place",
    errno.EEXIST: "a file stands where a folder is needed: move it away, or name another place",
    errno.EISDIR: "a folder stands where a file is needed: name another place",
    errno.ENOENT: "check the path, or restore the file",
    errno.ENOMEM: f"free memory, {AGAIN}",
}
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how the library that writes weights words an error of the system
NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|CUDA out of memory|bad_alloc|can't start new thread|"
    r"failed to map segment from shared object"
)


@contextmanager
def as_messages() -> Iterator[None]:
    """Raise failures of the machine as `StorageError` or `TailorError`, whose message names the file and the fix."""
    try:
        yield
    except (TailorError, BrokenPipeError, ConnectionError):
        raise
    except SafetensorError as error:
        raise StorageError(_of_safetensors(str(error))) from error
    except shutil.Error as error:  # of a folder that was copied: (source, target, what the system says) of each file
        raise StorageError(_of_copies(error)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise StorageError(describe(error)) from error
    except ImportError as error:
        if not NO_MEMORY.search(str(error)):
            raise
        raise TailorError(f"not enough memory to load what this command needs — {FIXES[errno.ENOMEM]}") from error
    except MemoryError as error:
        raise TailorError(f"not enough memory — {FIXES[errno.ENOMEM]}") from error
    except RuntimeError as error:
        if not NO_MEMORY.search(str(error)):
            raise
        raise TailorError(
            "not enough memory — `tailor check RECIPE --fit` finds settings that fit, or close other programs"
        ) from error


def describe(error: OSError) -> str:
    """The file, what the system says, and what to do about it."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = " -> ".join(names)
    fix = FIXES.get(error.errno or 0, f"when that is put right, {AGAIN.removeprefix('then ')}")
    return f"{where}{': ' if where else ''}{error.strerror} — {fix}"


def _of_copies(error: shutil.Error) -> str:
    text = str(error)
    number = re.search(r"\[Errno (\d+)\]", text)
    if number is None:
        return f"a folder cannot be copied ({text[:300]})"
    names = re.search(r"\[\('[^']*', '([^']*)'", text)
    return describe(OSError(int(number[1]), os.strerror(int(number[1])), names[1] if names else None))


def _of_safetensors(text: str) -> str:
    match = OS_ERROR.search(text)
    if match is None:
        return f"a file of weights cannot be read or written ({text}) — it is damaged: write or copy it again"
    return describe(OSError(int(match[1]), f"a file of weights: {os.strerror(int(match[1]))}"))
