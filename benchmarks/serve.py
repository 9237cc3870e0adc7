"""Is serving as fast as predicting, and does it last?

    python benchmarks/serve.py RUN FOLDER              # throughput under load against `predict` on the same files
    python benchmarks/serve.py RUN FOLDER --soak 7200  # mixed requests for so many seconds: memory, lost replies

Both sides run one after the other on the same machine, so the ratio counts, not the seconds. Loading and imports are
left out on both sides. `--clients` ask at a time. Writes results/serve.json or results/serve_soak.json.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import random
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil

HERE = Path(__file__).resolve().parent
CHAT = "/v1/chat/completions"
SAMPLE_SECONDS = 5.0

PREDICT = """
import json, sys, time
import mllm_tailor as tailor
from mllm_tailor.generation import read_inputs
from mllm_tailor.run.new_files import predictor_of_run
from mllm_tailor.run.predict import generate
from pathlib import Path
predictor = predictor_of_run(Path(sys.argv[1]))
model, samples = predictor.open(), read_inputs([Path(name) for name in sys.argv[2:]])
generate(predictor.mode, model, predictor.run, samples[:1])
seconds = []
for _ in range({rounds}):
    started = time.perf_counter(), time.process_time()
    rows = generate(predictor.mode, model, predictor.run, samples)
    seconds.append((time.perf_counter() - started[0], time.process_time() - started[1]))
print(json.dumps({{"seconds": seconds, "texts": {{row.id: row.text for row in rows}}}}))
"""


def pictures(folder: Path, most: int) -> list[Path]:
    """The first pictures of a folder."""
    suffixes = (".png", ".jpg", ".jpeg")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)[:most]
    assert files, f"{folder}: no pictures"
    return files


def body_of(run: str, file: Path) -> dict[str, Any]:
    """A request to read a file."""
    kind = "png" if file.suffix.lower() == ".png" else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
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
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600)
        self.usage = psutil.Process(self.process.pid)
        while True:
            assert self.process.poll() is None, "the server did not start"
            try:
                if self.client.get("/health").status_code == 200:
                    return
            except httpx2.HTTPError:
                time.sleep(0.2)

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.process.terminate()
        self.process.wait()


def throughput(run: Path, files: list[Path], clients: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn, `rounds` times each."""
    command = [sys.executable, "-c", PREDICT.format(rounds=rounds), str(run), *map(str, files)]
    predicted = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    server, seconds, texts = Server(run, clients + 8), [], {}
    name = server.client.get("/v1/models").json()["data"][0]["id"]
    bodies = {file.stem: body_of(name, file) for file in files}
    try:
        server.client.post(CHAT, json=bodies[files[0].stem])
        for _ in range(rounds):
            wall, cpu = time.perf_counter(), sum(server.usage.cpu_times()[:2])
            with ThreadPoolExecutor(clients) as pool:
                answers = list(pool.map(lambda stem: server.client.post(CHAT, json=bodies[stem]).json(), bodies))
            seconds.append((time.perf_counter() - wall, sum(server.usage.cpu_times()[:2]) - cpu))
            contents = [answer["choices"][0]["message"]["content"] for answer in answers]
            texts = dict(zip(bodies, contents, strict=True))
    finally:
        server.close()
    best = {"predict": min(predicted["seconds"]), "serve": min(seconds)}
    cpu = {"predict": min(row[1] for row in predicted["seconds"]), "serve": min(row[1] for row in seconds)}
    return {
        "files": len(files),
        "clients": clients,
        "rounds": rounds,
        "documents_per_second": {side: round(len(files) / row[0], 3) for side, row in best.items()},
        "cpu_seconds_per_document": {side: round(value / len(files), 3) for side, value in cpu.items()},
        "throughput_of_predict": round(best["predict"][0] / best["serve"][0], 3),
        "cpu_of_predict": round(cpu["predict"] / cpu["serve"], 3),
        "equal_replies": sum(texts[stem] == predicted["texts"][stem] for stem in texts),
    }


def soak(run: Path, files: list[Path], clients: int, seconds: float) -> dict[str, Any]:
    """Mixed requests: whole, in a schema, streamed, in questions, cut off, broken. Every one must be answered."""
    server = Server(run, clients)
    name = server.client.get("/v1/models").json()["data"][0]["id"]
    bodies = [body_of(name, file) for file in files]
    until, statuses, lost, memory = time.monotonic() + seconds, {}, 0, []

    def ask(number: int) -> int:
        random_state = random.Random(number)
        body = dict(random_state.choice(bodies))
        body |= random_state.choice(
            [
                {},
                {"response_format": {"type": "json_object"}},
                {"max_tokens": 5},
                {"stream": True},
                {"temperature": 1.0},
                {"model": f"{name}:base", "max_tokens": 20},
                {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 10},
            ]
        )
        answer = server.client.post(CHAT, json=body)
        whole = "[DONE]" in answer.text if body.get("stream") else answer.json().keys() & {"choices", "error"}
        return answer.status_code if whole else 0

    try:
        with ThreadPoolExecutor(clients) as pool:
            number = 0
            while time.monotonic() < until:
                began = time.monotonic()
                for status in pool.map(ask, range(number, number + clients * 4)):
                    statuses[status] = statuses.get(status, 0) + 1
                    lost += status == 0 or status >= 500
                number += clients * 4
                memory.append(server.usage.memory_info().rss)
                print(f"{number} requests, {memory[-1] / 2**20:.0f} MiB, {time.monotonic() - began:.1f} s", flush=True)
    finally:
        server.close()
    half = len(memory) // 2
    return {
        "seconds": seconds,
        "clients": clients,
        "requests": sum(statuses.values()),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "lost": lost,
        "memory_mib": {
            "first": round(memory[0] / 2**20),
            "half": round(memory[half] / 2**20),
            "last": round(memory[-1] / 2**20),
            "most": round(max(memory) / 2**20),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--soak", type=float, help="seconds")
    options = parser.parse_args()
    files = pictures(options.folder, options.files)
    load = round(os.getloadavg()[0], 1)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": load}
    if options.soak:
        result, out = soak(options.run, files, options.clients, options.soak), "serve_soak.json"
    else:
        result, out = throughput(options.run, files, options.clients, options.rounds), "serve.json"
    result["machine"] = machine
    (HERE / "results" / out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
