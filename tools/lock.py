"""Write requirements.lock: the versions of this environment that the project needs, with the hashes of all their files.

    .venv/bin/python tools/lock.py

Versions are those installed here, so that what was tested is what is locked. Hashes come from the package index that
pip uses, for every file of a version, so that one lock serves all platforms. Where a wheel was installed from a local
folder, its hash is added: pass such folders as arguments.

torch is the exception, in a file of its own (requirements-torch.lock): the same version comes as builds for CPU, CUDA
and ROCm from different indexes, and a CUDA build needs NVIDIA's packages beside it. The version is locked; the build,
with what it needs, is the one that pip finds on the machine.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pip._internal.models.index import PyPI

REPOSITORY = Path(__file__).resolve().parent.parent
LOCK = REPOSITORY / "requirements.lock"
TORCH_LOCK = REPOSITORY / "requirements-torch.lock"
NO_LOCK = {"mllm-tailor", "pip", "setuptools", "wheel"}
HEAD = """# Every package that `make demo` and `make test` install, with the hashes of all its files.
# Written by tools/lock.py from a tested environment; do not edit by hand.
"""
TORCH_HEAD = """# torch's version without hashes: its builds (CPU, CUDA, ROCm) differ, and pip takes the one it finds.
# Written by tools/lock.py from a tested environment; do not edit by hand.
"""


def closure() -> set[str]:
    """Names of the installed packages that the project needs with all its extras, markers taken into account."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    waiting = [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]
    names: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        need = waiting.pop()
        name, wanted = canonicalize_name(need.name), frozenset(need.extras)
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            print(f"not installed here, so not locked: {name}", file=sys.stderr)
            continue
        names.add(name)
        for line in needs:
            inner = Requirement(line)
            if any(inner.marker is None or inner.marker.evaluate({"extra": extra}) for extra in wanted or {""}):
                waiting.append(inner)
    return names - NO_LOCK


def index_hashes(name: str, version: str) -> set[str]:
    """SHA-256 of every file of a version on the package index (PEP 691)."""
    request = urllib.request.Request(
        f"{PyPI.simple_url}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    spelled = name.replace("-", "[-_.]+")
    start = re.compile(rf"{spelled}-{re.escape(version)}(-|\.tar|\.zip)", re.IGNORECASE)
    return {file["hashes"]["sha256"] for file in files if start.match(file["filename"]) and "sha256" in file["hashes"]}


def local_hashes(folders: list[Path]) -> Iterator[tuple[str, str]]:
    """`name==version` and hash of every wheel in local folders."""
    for wheel in (file for folder in folders for file in folder.glob("**/*.whl")):
        name, version = wheel.name.split("-")[:2]
        yield f"{canonicalize_name(name)}=={version}", hashlib.sha256(wheel.read_bytes()).hexdigest()


def main() -> None:
    """Write the lock file."""
    pins = {name: metadata.version(name) for name in sorted(closure())}
    TORCH_LOCK.write_text(f"{TORCH_HEAD}torch=={pins.pop('torch').split('+')[0]}\n", encoding="utf-8")
    local: dict[str, set[str]] = {}
    for pin, digest in local_hashes([Path(word) for word in sys.argv[1:]]):
        local.setdefault(pin, set()).add(digest)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(index_hashes, pins, [version.split("+")[0] for version in pins.values()]))
    lines = [HEAD]
    for (name, version), hashes in zip(pins.items(), found, strict=True):
        pin = f"{name}=={version.split('+')[0]}"
        every = sorted(hashes | local.get(f"{name}=={version}", set()) | local.get(pin, set()))
        if not every:
            raise SystemExit(f"{pin}: no file on the index and none in the given folders")
        lines.append(" \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in every)]) + "\n")
    LOCK.write_text("".join(lines), encoding="utf-8")
    print(f"{len(pins)} packages in {LOCK.name}, torch in {TORCH_LOCK.name}")


if __name__ == "__main__":
    main()
