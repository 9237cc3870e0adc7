"""Does a server last? Mixed requests for two hours: memory flat, every request answered.

    python benchmarks/soak.py                      # 120 minutes, the tiny model with a random adapter
    python benchmarks/soak.py --minutes 10
    python benchmarks/soak.py --run RUN --folder FOLDER

Chats with and without a schema, streams, cut-off replies, the base model, /v1/responses, /v1/extract with boxes, files
that come and go, broken bodies and images, unknown models, and clients that leave in the middle. A request counts as
lost if it gets no whole answer or a 5xx; those whose client left are counted apart. Memory is sampled after every
round; its slope is that of a straight line through all samples after the first fifth. Writes results/soak.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from served import Server, chat_body, data_url, pictures, tiny_run

HERE = Path(__file__).resolve().parent
CHAT, LEFT = "/v1/chat/completions", "left"
WARM_UP = 0.2  # share of the samples
REFUSALS = 10  # answers 429 to one request before it counts as lost
FLAT = 0.05  # growth of memory, as a share, from the end of the warm-up to the end

Outcome = tuple[str, str, bool]  # kind of request, status, whether it was lost


class Clients:
    """Requests of every kind to one server."""

    def __init__(self, server: Server, files: list[Path], pause: float) -> None:
        self.pause = pause
        self.server, self.files, self.client = server, files, server.client
        self.refused = 0  # answers 429, after which the request was sent again
        self.kinds: dict[str, Callable[[random.Random], Outcome]] = {
            "chat": lambda draw: self._chat(draw, "chat"),
            "schema": lambda draw: self._chat(draw, "schema", response_format={"type": "json_object"}),
            "cut off": lambda draw: self._chat(draw, "cut off", max_tokens=5),
            "base": lambda draw: self._chat(draw, "base", model=f"{server.name}:base", max_tokens=20),
            "words": lambda draw: self._chat(
                draw, "words", messages=[{"role": "user", "content": "Hello?"}], max_tokens=10
            ),
            "stream": self._stream,
            "leaves": self._leave,
            "responses": self._response,
            "extract": self._extract,
            "files": self._file,
            "broken": self._broken,
        }

    def ask(self, number: int) -> Outcome:
        """One request, whatever its number draws, and a pause."""
        time.sleep(self.pause)
        draw = random.Random(number)
        kind = draw.choice(list(self.kinds))
        try:
            for _ in range(REFUSALS):
                outcome = self.kinds[kind](draw)
                if outcome[1] != "429":
                    return outcome
                self.refused += 1
                time.sleep(1)  # what Retry-After asks for, as every client of OpenAI's does
            return outcome
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            return kind, type(error).__name__, True

    def _body(self, draw: random.Random) -> dict[str, Any]:
        return chat_body(self.server.name, draw.choice(self.files))

    def _chat(self, draw: random.Random, kind: str, **changes: Any) -> Outcome:
        answer = self.client.post(CHAT, json=self._body(draw) | changes)
        return kind, str(answer.status_code), answer.status_code != 200 or "choices" not in answer.json()

    def _stream(self, draw: random.Random) -> Outcome:
        answer = self.client.post(CHAT, json=self._body(draw) | {"stream": True})
        return "stream", str(answer.status_code), not answer.text.rstrip().endswith("[DONE]")

    def _leave(self, draw: random.Random) -> Outcome:
        with self.client.stream("POST", CHAT, json=self._body(draw) | {"stream": True}) as answer:
            next(answer.iter_bytes(), None)
        return "leaves", LEFT, False

    def _response(self, draw: random.Random) -> Outcome:
        part = {"type": "input_image", "image_url": data_url(draw.choice(self.files))}
        body = {"model": self.server.name, "input": [{"role": "user", "content": [part]}]}
        answer = self.client.post("/v1/responses", json=body)
        return "responses", str(answer.status_code), answer.status_code != 200 or "output" not in answer.json()

    def _extract(self, draw: random.Random) -> Outcome:
        answer = self.client.post("/v1/extract", json={"file": data_url(draw.choice(self.files))})
        whole = answer.status_code == 200 and {"fields", "confidence", "where"} <= answer.json().keys()
        return "extract", str(answer.status_code), not whole

    def _file(self, draw: random.Random) -> Outcome:
        content = json.dumps({"number": draw.random()}).encode()
        upload = {"file": ("rows.jsonl", content)}
        made = self.client.post("/v1/files", data={"purpose": "batch"}, files=upload).json()
        back = self.client.get(f"/v1/files/{made['id']}/content").content
        gone = self.client.delete(f"/v1/files/{made['id']}").status_code
        return "files", str(gone), back != content or gone != 200

    def _broken(self, draw: random.Random) -> Outcome:
        body = self._body(draw)
        url = draw.choice(["data:image/png;base64,AAAA", "http://127.0.0.1/a.png"])
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
        changes: list[dict[str, Any]] = [
            {"temperature": 1.0},
            {"model": "nobody"},
            {"messages": []},
            {"messages": [message]},
        ]
        broken = body | draw.choice(changes)
        answer = self.client.post(CHAT, json=broken)
        return "broken", str(answer.status_code), not 400 <= answer.status_code < 500 or "error" not in answer.json()


def soak(run: Path, files: list[Path], clients: int, seconds: float, pause: float) -> dict[str, Any]:
    """Ask for so many seconds."""
    server = Server(run, 2 * clients)  # those whose client left hold their room until the server notices
    asking = Clients(server, files, pause)
    outcomes: Counter[tuple[str, str]] = Counter()
    lost: list[tuple[str, str]] = []
    times, memory, number, shown = [], [], 0, 0
    started = time.monotonic()
    try:
        with ThreadPoolExecutor(clients) as pool:
            while (elapsed := time.monotonic() - started) < seconds:
                for kind, status, is_lost in pool.map(asking.ask, range(number, number + clients * 4)):
                    outcomes[kind, status] += 1
                    lost += [(kind, status)] if is_lost else []
                number += clients * 4
                times.append(elapsed)
                memory.append(server.usage.memory_info().rss / 2**20)
                for kind, status in lost[shown:]:
                    print(f"lost: {kind} {status}", flush=True)
                shown = len(lost)
                print(f"{elapsed:.0f} s: {number} requests, {memory[-1]:.0f} MiB, {len(lost)} lost", flush=True)
        left = server.client.get("/metrics").text
        in_flight = next(line for line in left.splitlines() if line.startswith("tailor_requests_in_flight "))
    finally:
        server.close()
    warm = int(WARM_UP * len(memory))
    slope = float(np.polyfit(np.array(times[warm:]) / 3600, memory[warm:], 1)[0]) if len(memory) - warm > 2 else 0.0
    growth = memory[-1] / memory[warm] - 1
    return {
        "minutes": round(seconds / 60, 1),
        "clients": clients,
        "pause": pause,
        "requests": number,
        "by_kind": {f"{kind} {status}": count for (kind, status), count in sorted(outcomes.items())},
        "sent_again_after_429": asking.refused,
        "lost": len(lost),
        "lost_kinds": sorted({f"{kind} {status}" for kind, status in lost}),
        "in_flight_at_end": float(in_flight.split()[-1]),
        "memory_mib": {
            "first": round(memory[0]),
            "warm": round(memory[warm]),
            "last": round(memory[-1]),
            "most": round(max(memory)),
            "slope_per_hour": round(slope, 1),
        },
        "growth_after_warm_up": round(growth, 4),
        "flat": growth < FLAT,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two requests of a client")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "soak.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run, files = (
            (options.run, pictures(options.folder, 40)) if options.run is not None else tiny_run(Path(temporary))
        )
        result = soak(run, files, options.clients, 60 * options.minutes, options.pause)
    result["model"] = "tiny" if options.run is None else run.name
    load = round(os.getloadavg()[0], 1)
    result["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": load}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if result["flat"] and not result["lost"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
