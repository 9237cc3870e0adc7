"""Servers that are killed while clients talk to them: nothing that was answered with success is lost."""

from __future__ import annotations

import base64
import http.client
import json
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from reliability.forked import Child, run, start
from reliability.job import HANG, cpu_seconds
from reliability.kills import CHAIN, Tally, interrupt_after
from reliability.workspace import PLACE, copy_workspace

CHAT = "/v1/chat/completions"
ROWS = 6  # of a batch
CORRECTIONS = 12  # of each document, the last of which is its label
PAUSE = 0.02  # seconds between two looks at a server
GONE = (OSError, http.client.HTTPException, ValueError)  # what a client meets when the server dies


@dataclass
class Client:
    """Requests to a port of this machine; a request without an answer raises one of `GONE`."""

    port: int

    def send(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """The body of an answer with success.

        Raises:
            OSError: when there is none.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ConnectionError(f"{answer.status}: {content[:200]!r}")
        return content

    def json(self, method: str, path: str, body: object = None) -> Any:
        """The same with JSON."""
        return json.loads(self.send(method, path, None if body is None else json.dumps(body).encode()))

    def wait(self, path: str, child: Child) -> bool:
        """Wait until a server answers; False when it has ended."""
        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline and not child.ended():
            try:
                self.send("GET", path)
            except GONE:
                time.sleep(PAUSE)
            else:
                return True
        return False


class Service(Protocol):
    """A server, what its clients do, and what must be left in the end."""

    name: str
    needs: tuple[str, ...]
    health: str

    def words(self, port: int) -> tuple[str, ...]:
        """The command."""
        ...

    def work(self, client: Client) -> None:
        """Do what is still to be done; raises one of `GONE` when the server dies. Notes everything answered."""
        ...

    def left(self, client: Client, folder: Path) -> object:
        """Compared with the same of an undisturbed server, once all work is done.

        Raises:
            AssertionError: when something that was answered is not there.
        """
        ...


@dataclass
class Serving:
    """`tailor serve` with a batch, and requests beside it."""

    images: list[bytes]
    name: str = "serve"
    needs: tuple[str, ...] = ("d", "model", "runs")
    health: str = "/health"
    uploaded: dict[str, bytes] = field(default_factory=dict)  # files that the server has confirmed
    batch: str = ""
    replies: dict[int, str] = field(default_factory=dict)

    def words(self, port: int) -> tuple[str, ...]:
        """The command."""
        return ("serve", "runs/g", "--port", str(port), "--files", "store")

    def work(self, client: Client) -> None:
        """Upload a file, begin a batch, and ask beside it until the batch is completed."""
        if not self.uploaded:
            content = b"".join(json.dumps(self._row(index)).encode() + b"\n" for index in range(ROWS))
            note = json.loads(client.send("POST", "/v1/files", *_form(content)))
            self.uploaded[note["id"]] = content
        if not self.batch:
            asked = {"input_file_id": next(iter(self.uploaded)), "endpoint": CHAT, "completion_window": "24h"}
            self.batch = client.json("POST", "/v1/batches", asked)["id"]
        for index in range(2):
            answer = client.json("POST", CHAT, self._row(index)["body"])
            text = answer["choices"][0]["message"]["content"]
            assert self.replies.setdefault(index, text) == text, f"request {index}: another reply"
        deadline = time.monotonic() + HANG
        while client.json("GET", f"/v1/batches/{self.batch}")["status"] != "completed":
            assert time.monotonic() < deadline, "the batch does not end"
            time.sleep(PAUSE)

    def left(self, client: Client, folder: Path) -> object:
        """Replies of the batch by row, and of the requests."""
        for number, content in self.uploaded.items():
            assert client.send("GET", f"/v1/files/{number}/content") == content, f"{number}: other bytes"
        row = client.json("GET", f"/v1/batches/{self.batch}")
        lines = client.send("GET", f"/v1/files/{row['output_file_id']}/content").splitlines()
        answers = [json.loads(line) for line in lines]
        names = sorted(answer["custom_id"] for answer in answers)
        assert names == sorted(map(str, range(ROWS))), f"rows answered: {names}"
        bodies = {answer["custom_id"]: answer["response"]["body"] for answer in answers}
        replies = {name: (body["choices"], body["usage"]) for name, body in bodies.items()}
        hidden = [file.name for file in (folder / "store").iterdir() if file.name.endswith((".partial", ".sums"))]
        return json.loads(json.dumps([replies, self.replies, row["request_counts"], hidden]))

    def _row(self, index: int) -> dict[str, Any]:
        address = "data:image/png;base64," + base64.b64encode(self.images[index % len(self.images)]).decode()
        content = [{"type": "image_url", "image_url": {"url": address}}]
        body = {"model": "g", "messages": [{"role": "user", "content": content}]}
        return {"custom_id": str(index), "method": "POST", "url": CHAT, "body": body}


def _form(content: bytes) -> tuple[bytes, str]:
    edge = "edge-of-a-part"
    parts = (
        b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch',
        b'Content-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n' + content,
    )
    begin = f"--{edge}\r\n".encode()
    body = b"".join(begin + part + b"\r\n" for part in parts) + f"--{edge}--\r\n".encode()
    return body, f"multipart/form-data; boundary={edge}"


@dataclass
class Reviewing:
    """`tailor review`: every document is corrected several times and finished."""

    images: list[bytes]
    name: str = "review"
    needs: tuple[str, ...] = ("d", "model", "runs")
    health: str = "/"
    answered: list[tuple[int, str, Any]] = field(default_factory=list)  # number, action and value of each decision

    def words(self, port: int) -> tuple[str, ...]:
        """The command."""
        return ("review", "runs/g", "d/images", "--db", "review/corrections.db", "--port", str(port))

    def work(self, client: Client) -> None:
        """Correct and finish documents until none is left."""
        who = {"session": "tab", "reviewer": "Anne"}
        while (document := client.json("POST", "/api/take", who)["document"]) is not None:
            number = document["values"]["total"]["value"]
            done = int(number.partition(".")[2]) if str(number).startswith("7.") else 0
            change = who | {"document": document["document"], "seen": document["seen"]}
            action = {"action": "correct", "field": "total", "after": f"7.{done + 1}"}
            if done >= CORRECTIONS:
                action = {"action": "finish"}
            shown = client.json("POST", "/api/change", change | action)["document"]
            self.answered.append((shown["seen"], action["action"], action.get("after")))

    def left(self, client: Client, folder: Path) -> object:
        """The labels, once every decision that was answered was found among those that are kept."""
        ended = run(("review", "runs/g", "--db", "review/corrections.db", "--export", "out/labels.jsonl"), folder)
        assert ended.status == 0, ended.error
        kept = {row["number"]: row for row in _rows(folder / "out" / "labels.decisions.jsonl")}
        for number, action, value in self.answered:
            row = kept[number]
            assert (row["action"], row["after"]) == (action, value), f"decision {number} was answered and is another"
        return sorted((row["id"], json.dumps(row["fields"])) for row in _rows(folder / "out" / "labels.jsonl"))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kill_servers(make: Callable[[list[bytes]], Service], workspace: Path, folder: Path, kills: int) -> Tally:
    """SIGKILL at random moments, several of each server; then it is started again and its clients finish their work."""
    images = [file.read_bytes() for file in sorted((workspace / "d" / "images").iterdir())]
    place, tally = folder / PLACE, Tally()
    service = make(images)
    chance = random.Random(service.name)
    _prepare(service, workspace, place)
    seconds, wanted = _finish(service, place)
    while tally.injected < kills:
        service = make(images)
        _prepare(service, workspace, place)
        count = 0
        for _ in range(2 * CHAIN):
            count += _kill(service, place, chance.uniform(0.0, 1.0) * seconds)
            if count == min(CHAIN, kills - tally.injected):
                break
        if not count:
            continue
        try:
            found = _finish(service, place)[1]
        except (AssertionError, *GONE) as error:
            tally.fail(f"after {count} kills: {error}", count)
        else:
            if found == wanted:
                tally.count("nothing lost, the same in the end", count)
            else:
                tally.fail(f"after {count} kills: not the same: {found}, undisturbed {wanted}"[:2000], count)
    return tally


def _prepare(service: Service, workspace: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    copy_workspace(workspace, place, *service.needs)


def _begin(service: Service, place: Path) -> tuple[Child, Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    return start(service.words(port), place), Client(port)


def _kill(service: Service, place: Path, seconds: float) -> int:
    """Kill a server once it has used so many CPU seconds; 0 where the work was done before."""
    child, client = _begin(service, place)
    done = threading.Event()

    def talk() -> None:
        try:
            if client.wait(service.health, child):
                service.work(client)
                done.set()
        except GONE:
            return

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    interrupt_after(child, seconds, lambda: child.kill(signal.SIGKILL))
    ended = child.wait(HANG)
    thread.join(HANG)
    return int(ended.status == -signal.SIGKILL)


def _finish(service: Service, place: Path) -> tuple[float, object]:
    """Do all that is left to be done; the server's CPU seconds until then, and what is left in the end."""
    child, client = _begin(service, place)
    try:
        if not client.wait(service.health, child):
            raise ConnectionError(f"the server did not start: {child.wait(HANG).error}")
        service.work(client)
        seconds = cpu_seconds(child)
        left = service.left(client, place)
    finally:
        child.kill(signal.SIGTERM)
        child.wait(HANG)
    return seconds, left


SERVICES: Mapping[str, Callable[[list[bytes]], Service]] = {"serve": Serving, "review": Reviewing}
