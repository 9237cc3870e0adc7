"""Processes that read receipts when asked (`reading_worker.py`), each in the environment of its engine."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from builds import ROOT, Side
from environments import python_of

from mllm_tailor.cli.main import VLLM
from mllm_tailor.synthetic import draw_document

HERE = Path(__file__).resolve().parent
WORDS_OF_ERROR = 1500  # characters of what a failed process wrote last
OF_VLLM = {
    **VLLM,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many threads as OMP_NUM_THREADS says, on any core
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
Ask = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def reading_process(
    side: Side, *, engine: str = "ours", dtype: str = "float32", model: str = "embedded", limit: float = 600
) -> Iterator[Ask]:
    """A process of `reading_worker.py`, to be asked; its first answer holds `opening`, the CPU seconds until then.

    Raises:
        RuntimeError: with the end of its output, when it has ended or an answer takes longer than `limit` seconds.
    """
    python = python_of("vllm" if engine == "vllm" else "ours")
    environment = side.environment | OF_VLLM
    if engine == "vllm":
        environment["PYTHONPATH"] += os.pathsep + str(HERE / "patched")
    words = [str(python), str(HERE / "reading_worker.py"), engine, dtype, model]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, text=True, stdout=subprocess.PIPE,
                         stderr=errors) as process,
    ):  # fmt: skip
        questions: IO[str] = process.stdin  # type: ignore[assignment]
        answers: IO[str] = process.stdout  # type: ignore[assignment]

        def ask(asked: dict[str, Any]) -> dict[str, Any]:
            timer = threading.Timer(limit, process.kill)
            timer.start()
            try:
                questions.write(json.dumps(asked) + "\n")
                questions.flush()
                line = answers.readline()
            except BrokenPipeError:
                line = ""
            finally:
                timer.cancel()
            if not line:
                process.wait()
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip()[-WORDS_OF_ERROR:].replace(str(ROOT), ".")
                raise RuntimeError(f"{side.name}, {engine}: the process that reads receipts has ended\n{words}")
            answer: dict[str, Any] = json.loads(line)
            return answer

        try:
            yield ask
        finally:
            try:
                questions.close()
            except BrokenPipeError:
                process.kill()


def draw_receipts(folder: Path, seed: int, count: int) -> list[str]:
    """Files of drawn receipts with the seeds from `seed` on."""
    files = []
    for number in range(seed, seed + count):
        files.append(str(folder / f"{number}.png"))
        draw_document("receipts", number).image.save(files[-1])
    return files
