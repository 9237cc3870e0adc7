"""Is serving as fast as predicting?

    python benchmarks/serve.py                # the embedded model on drawn receipts
    python benchmarks/serve.py RUN FOLDER     # a run of yours on pictures of yours

Throughput under load against `predict` on the same files, in turns on the same machine, so the ratio counts, not the
seconds. Loading and imports are left out on both sides. `--clients` ask at a time. Writes results/serve.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from served import Server, chat_body, embedded_run, pictures

HERE = Path(__file__).resolve().parent
CHAT = "/v1/chat/completions"

PREDICT = """
import json, sys, time
from mllm_tailor.generation import read_inputs
from mllm_tailor.run.new_files import predictor_of_run
from mllm_tailor.run.predict import generate
from pathlib import Path
predictor = predictor_of_run(Path(sys.argv[1]))
model, samples = predictor.open(), read_inputs([Path(name) for name in sys.argv[2:]])
generate(predictor.mode, model, predictor.run, samples[:1])
for _ in sys.stdin:
    started = time.perf_counter(), time.process_time()
    rows = generate(predictor.mode, model, predictor.run, samples)
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    print(json.dumps({"seconds": seconds, "texts": {row.id: row.text for row in rows}}), flush=True)
"""


def throughput(run: Path, files: list[Path], clients: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn, `rounds` times each."""
    command = [sys.executable, "-c", PREDICT, str(run), *map(str, files)]
    predictor = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert predictor.stdin is not None and predictor.stdout is not None
    server = Server(run, clients + 8)
    bodies = {file.stem: chat_body(server.name, file) for file in files}
    texts: dict[str, dict[str, str]] = {"predict": {}, "serve": {}}
    seconds: dict[str, list[tuple[float, float]]] = {"predict": [], "serve": []}
    try:
        server.client.post(CHAT, json=bodies[files[0].stem])
        for _ in range(rounds):
            predictor.stdin.write("\n")
            predictor.stdin.flush()
            row = json.loads(predictor.stdout.readline())
            seconds["predict"].append(tuple(row["seconds"]))
            texts["predict"] = row["texts"]
            wall, cpu = time.perf_counter(), server.cpu_seconds()
            with ThreadPoolExecutor(clients) as pool:
                answers = list(pool.map(lambda stem: server.client.post(CHAT, json=bodies[stem]).json(), bodies))
            seconds["serve"].append((time.perf_counter() - wall, server.cpu_seconds() - cpu))
            contents = [answer["choices"][0]["message"]["content"] for answer in answers]
            texts["serve"] = dict(zip(bodies, contents, strict=True))
            print(seconds, flush=True)
    finally:
        server.close()
        predictor.stdin.close()
        predictor.wait()
    wall_seconds = {side: min(row[0] for row in rows) for side, rows in seconds.items()}
    cpu_seconds = {side: min(row[1] for row in rows) for side, rows in seconds.items()}
    return {
        "files": len(files),
        "clients": clients,
        "rounds": rounds,
        "documents_per_second": {side: round(len(files) / value, 3) for side, value in wall_seconds.items()},
        "cpu_seconds_per_document": {side: round(value / len(files), 3) for side, value in cpu_seconds.items()},
        "throughput_of_predict": round(wall_seconds["predict"] / wall_seconds["serve"], 3),
        "cpu_of_predict": round(cpu_seconds["predict"] / cpu_seconds["serve"], 3),
        "equal_replies": sum(texts["serve"][stem] == texts["predict"][stem] for stem in bodies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.run is None:
            run, files = embedded_run(Path(temporary), options.files)
        else:
            run, files = options.run, pictures(options.folder, options.files)
        result = throughput(run, files, options.clients, options.rounds)
    load = round(os.getloadavg()[0], 1)
    result["model"] = "embedded, untuned" if options.run is None else run.name
    result["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": load}
    (HERE / "results" / "serve.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
