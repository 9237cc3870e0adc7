"""Runs and servers for the benchmarks of serving."""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil

HERE = Path(__file__).resolve().parent
SUFFIXES = (".png", ".jpg", ".jpeg")
RECEIPT = {"company": "string", "date": "date", "address": "string", "total": "amount"}


def fixtures() -> Any:
    """The tests' makers of run folders."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from fixtures import served_runs

    return served_runs


def tiny_run(folder: Path) -> tuple[Path, list[Path]]:
    """A run of the tiny model with a random adapter, calibrated, and pictures of numbers."""
    served_runs = fixtures()
    files = served_runs.receipt_files(folder / "pictures", 20)
    task = {"extract": {"fields": served_runs.FIELDS}}
    run = served_runs.make_run(folder / "runs", "receipts", Path("tiny"), task, max_new_tokens=200)
    served_runs.calibrate(run)
    return run.path, files


def embedded_run(folder: Path, count: int) -> tuple[Path, list[Path]]:
    """A run of the embedded model whose adapter changes nothing, and drawn receipts."""
    from mllm_tailor.synthetic import draw_folder

    draw_folder(folder / "receipts", count, 0, seed=11)
    task = {"extract": RECEIPT}
    run = fixtures().make_run(folder / "runs", "embedded", Path("embedded"), task, max_new_tokens=300, strength=0.0)
    return run.path, pictures(folder / "receipts", count)


def pictures(folder: Path, most: int) -> list[Path]:
    """The first pictures of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[:most]
    assert files, f"{folder}: no pictures"
    return files


def data_url(file: Path) -> str:
    """A picture as clients embed it."""
    kind = "png" if file.suffix.lower() == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def chat_body(run: str, file: Path) -> dict[str, Any]:
    """A request to read a file."""
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(file)}}]}
    return {"model": run, "messages": [message]}


class Server:
    """`tailor serve` in a process of its own."""

    def __init__(self, run: Path, requests: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["serve", str(run), "--port", str(port), "--requests", str(requests)]
        command = [sys.executable, "-m", "mllm_tailor.cli.main", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        limits = httpx2.Limits(max_connections=requests + 8)
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=900, limits=limits)
        self.usage = psutil.Process(self.process.pid)
        while True:
            assert self.process.poll() is None, "the server did not start"
            try:
                if self.client.get("/health").status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.2)
        self.name: str = self.client.get("/v1/models").json()["data"][0]["id"]

    def cpu_seconds(self) -> float:
        """Of the process so far."""
        user, system = self.usage.cpu_times()[:2]
        return float(user + system)

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.process.terminate()
        self.process.wait()
