"""Many small documents read by two Ray workers, stopped in the middle by SIGKILL, and read on by the same command.

    python benchmarks/ray_predict.py                     # 100,000 documents
    python benchmarks/ray_predict.py --documents 2000    # minutes

`model: tiny` on two nodes inside this machine, object stores of 100 MiB. The first call is killed once a third
of the parts are there; the second must read exactly the files that have no row and leave the parts that are there
untouched, and in the end each file has one row.
Memory is the peak of a worker (resident) and of the command itself. Exit status 1 when a row is missing or there twice,
or when a process has held more than --cap MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from ray_nodes import RAY, in_ray_environment, ray_nodes

HERE = Path(__file__).resolve().parent


def draw(folder: Path, count: int) -> None:
    """Small pictures with their numbers on them."""
    from PIL import Image, ImageDraw

    for number in range(count):
        place = folder / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        image = Image.new("L", (56, 56), 255)
        ImageDraw.Draw(image).text((5, 20), str(number), fill=0)
        image.save(place / f"{number:06}.png")


def make_run(place: Path) -> Path:
    """A finished run of the tiny model, trained for one step."""
    from mllm_tailor.recipe import make_recipe
    from mllm_tailor.run.execute import execute
    from mllm_tailor.synthetic import draw_folder

    draw_folder(place / "data", 4, 2, seed=5)
    values = {
        "name": "tiny",
        "model": {"path": "tiny", "dtype": "float32"},
        "data": {"train": str(place / "data"), "held_out": {"column": "split", "value": "dev"}, "dev": 0},
        "task": {"extract": {"total": "amount"}},
        "method": {"name": "lora", "rank": 4},
        "train": {"steps": 1, "batch_size": 2, "processes": 1},
        "predict": {"max_new_tokens": 8},
        "output": str(place / "runs"),
    }
    return execute(make_recipe(values)).path


def start(run: Path, scans: Path, out: Path, address: str) -> subprocess.Popen[str]:
    """The command of a user."""
    words = ["predict", str(run), str(scans), "--on", "ray", "--workers", "2", "--address", address, "--out", str(out)]
    command = [sys.executable, "-m", "mllm_tailor.cli.main", *words, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def readers() -> Sequence[psutil.Process]:
    """Worker processes that hold a model."""
    return [child for child in psutil.Process().children(recursive=True) if "ray::Reader" in words_of(child)]


def words_of(process: psutil.Process) -> str:
    """The command line of a process; empty for one that has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def watch(command: subprocess.Popen[str], peaks: dict[str, int], until: int | None, out: Path) -> None:
    """Note peaks until the command has ended or so many parts are there."""
    while command.poll() is None:
        for name, processes in (("command", [psutil.Process(command.pid)]), ("worker", readers())):
            for process in processes:
                try:
                    peaks[name] = max(peaks.get(name, 0), process.memory_info().rss)
                except psutil.Error:  # it has ended meanwhile
                    continue
        if until is not None and len(list(out.glob("part-*"))) >= until:
            return
        time.sleep(0.25)


def parts_of(out: Path) -> dict[str, tuple[int, int]]:
    """The parts, each with what changes when it is written again."""
    return {part.name: (part.stat().st_ino, part.stat().st_mtime_ns) for part in out.glob("part-*.jsonl")}


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted(out.glob("part-*.jsonl")) for line in part.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--cap", type=int, default=1500, help="MiB that no process may exceed")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ray_predict.json")
    arguments = parser.parse_args()
    in_ray_environment()
    from mllm_tailor.core.device import describe_machine
    from mllm_tailor.launch.ray_predict import BLOCK

    with tempfile.TemporaryDirectory(prefix="tailor-ray-") as folder:
        place = Path(folder)
        scans, out = place / "scans", place / "predictions"
        draw(scans, arguments.documents)
        run = make_run(place)
        peaks: dict[str, int] = {}
        with ray_nodes(2) as nodes:
            first = start(run, scans, out, nodes.address)
            watch(first, peaks, arguments.documents // BLOCK // 3, out)
            assert first.poll() is None, "it ended before it was killed"
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            while readers():  # Ray ends the workers of a command that is gone
                time.sleep(0.25)
            before, parts = rows_of(out), parts_of(out)
            started = time.perf_counter()
            second = start(run, scans, out, nodes.address)
            watch(second, peaks, None, out)
            seconds = time.perf_counter() - started
            status, rows, parts_after = second.wait(), rows_of(out), parts_of(out)
    files = {row["file"] for row in rows}
    result: dict[str, Any] = {
        "documents": arguments.documents,
        "ray": RAY,
        "machine": describe_machine(),
        "rows_when_killed": len(before),
        "rows_made_by_the_second_call": len(rows) - len(before),
        "rows": len(rows),
        "files_with_a_row": len(files),
        "parts_when_killed": len(parts),
        "parts": len(parts_after),
        "parts_of_the_first_call_untouched": parts.items() <= parts_after.items(),
        "peak_mib": {name: round(peak / 2**20) for name, peak in peaks.items()},
        "cap_mib": arguments.cap,
        "wall_seconds_of_the_second_call": round(seconds),
    }
    result["holds"] = (
        status == 0
        and 0 < len(before) < arguments.documents == len(rows) == len(files)
        and result["parts_of_the_first_call_untouched"]
        and max(result["peak_mib"].values()) <= arguments.cap
    )
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
