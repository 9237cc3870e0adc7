"""The way of a user whose data, scans, runs and predictions lie in S3, against a local server (moto).

    python benchmarks/object_store.py             # two minutes; --out FILE elsewhere
    python benchmarks/object_store.py --ray       # also with workers of Ray, which is installed for it

Labelled receipts are read from a bucket by `tailor init` and `tailor run`, the run is published, and a second machine
(another cache) reads scans of the bucket with the published run into the bucket. Its rows must be those of the local
run on local files. Then what users get wrong: no such bucket, key or credentials, a damaged adapter, a row that names
another bucket. Each must end with a message and exit status 2. Exit status 1 when any of it does not hold.

moto and s3fs are no part of the development environment: they are installed in one that sees the packages of this one.
"""

from __future__ import annotations

import argparse
import json
import os
import site
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".benchmarks" / "object-store"
PACKAGES = ("moto[server]==5.2.5", "s3fs==2026.9.0")
RAY = "ray==2.60.0"
SETTINGS = (
    "name=tiny", "model.path=tiny", "model.dtype=float32", "data.held_out={column: split, value: dev}", "data.dev=0",
    "task={extract: {company: string, total: amount}}", "method={name: lora, rank: 4}",
    "train={steps: 2, batch_size: 2, processes: 1}", "predict={max_new_tokens: 8}", "score=[fuzzy]",
)  # fmt: skip
SAID = {
    "no such bucket": "s3://nowhere/runs/tiny: no such file or folder",
    "no such folder": "s3://bucket/dta: no such file or folder",
    "bucket of the output missing": "s3://nowhere/out.jsonl",
    "no credentials": "no usable credentials",
    "row of another bucket": "s3://bucket/outside/labels.jsonl:1: `s3://elsewhere/data/x.png` lies outside the data",
    "output in a store": "write `publish: s3://bucket/runs`",
    "damaged adapter": "s3://bucket/runs/tiny/adapter/tailor.json: damaged",
}


def make_environment(*more: str) -> Path:
    python = HOME / "bin" / "python"
    wanted = "\n".join((*PACKAGES, *more))
    if not (HOME / ".ready").exists() or wanted not in (HOME / ".ready").read_text():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        packages = next(HOME.glob("lib/python*/site-packages"))
        (packages / "project.pth").write_text("\n".join(site.getsitepackages()))
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES, *more], check=True)
        (HOME / ".ready").write_text(wanted)
    return python


@contextmanager
def s3_server(python: Path) -> Iterator[str]:
    """A server of S3 on this machine; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "import sys; from moto.server import main; main(sys.argv[1:])"
    server = subprocess.Popen(
        [str(python), "-c", script, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


class Machine:
    """A place with a cache of its own, from which `tailor` is called."""

    def __init__(self, python: Path, folder: Path, address: str) -> None:
        folder.mkdir()
        self.python, self.folder = python, folder
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        self.environment = {
            **os.environ, **keys, "AWS_ENDPOINT_URL": address, "TAILOR_CACHE": str(folder / "cache"),
            "AWS_EC2_METADATA_DISABLED": "true", "PYTHONPATH": str(HERE.parent / "src"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def tailor(self, *words: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), "-m", "mllm_tailor.cli.main", *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.folder, env=_set(self.environment, environment)
        )

    def store(self, script: str, *words: str) -> str:
        """The output of a script with `fs`, s3fs's file system, and `words`."""
        head = "import sys, s3fs\nfs, words = s3fs.S3FileSystem(), sys.argv[1:]\n"
        done = subprocess.run(
            [str(self.python), "-c", head + script, *words], capture_output=True, text=True, env=self.environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _set(values: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def must(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows_of(text: str) -> dict[str, Any]:
    """What was read, by file; ids and files are named alike here and there."""
    rows = [json.loads(line) for line in text.splitlines()]
    return {row["file"]: {key: value for key, value in row.items() if key != "seconds"} for row in rows}


def walk(first: Machine, second: Machine, place: Path) -> dict[str, Any]:
    """From labelled data in a bucket to predictions in the bucket, made elsewhere."""
    from mllm_tailor.synthetic import draw_folder

    draw_folder(place / "data", 4, 3, seed=5)
    images = sorted(path for path in (place / "data").rglob("*") if path.suffix in (".png", ".jpg"))
    put = "fs.put(words[0], 'bucket/data', recursive=True)\n"
    first.store("fs.mkdir('bucket')\n" + put, str(place / "data"))
    (place / "scans").mkdir()
    for number, image in enumerate(images):
        (place / "scans" / f"scan-{number}{image.suffix}").write_bytes(image.read_bytes())
    first.store("fs.put(words[0], 'bucket/scans', recursive=True)", str(place / "scans"))
    must(first.tailor("init", "s3://bucket/data"))
    proposed = (first.folder / "recipe.yaml").read_text()
    must(first.tailor("run", "recipe.yaml", *SETTINGS, "publish=s3://bucket/runs"))
    local = must(first.tailor("predict", "runs/tiny", str(place / "scans"), "--out", "local.jsonl")) and rows_of(
        (first.folder / "local.jsonl").read_text()
    )
    words = ("predict", "s3://bucket/runs/tiny", "s3://bucket/scans", "--out", "s3://bucket/out/predictions.jsonl")
    must(second.tailor(*words))
    stored = rows_of(first.store("print(fs.cat('bucket/out/predictions.jsonl').decode(), end='')"))
    names = json.loads(first.store("import json; print(json.dumps(fs.find('bucket/runs/tiny')))"))
    return {
        "init_writes_the_url": "s3://bucket/data" in proposed,
        "files_of_the_published_run": len(names),
        "no_checkpoints_published": not any("checkpoints" in name for name in names),
        "scans": len(images),
        "rows_equal_to_those_of_local_files": stored == local and len(stored) == len(images),
    }


def with_ray(first: Machine, second: Machine) -> dict[str, Any]:
    """Parts by two workers from scans in the bucket into the bucket; another machine then finds nothing to do."""
    words = ("predict", "s3://bucket/runs/tiny", "s3://bucket/scans", "--on", "ray", "--workers", "2")
    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
    local = rows_of((first.folder / "local.jsonl").read_text())
    calls = [machine.tailor(*words, "--out", "s3://bucket/parts", **settings) for machine in (second, first)]
    for done in calls:
        must(done)
    text = first.store("print(''.join(fs.cat(name).decode() for name in fs.glob('bucket/parts/part-*')), end='')")
    rows = rows_of(text)
    return {
        "rows_equal_to_those_of_local_files": {name: _without_key(row) for name, row in rows.items()} == local,
        "each_once": len(text.splitlines()) == len(local),
        "another_machine_finds_all_rows": f"{len(local)} rows were there already" in calls[1].stderr + calls[1].stdout,
    }


def _without_key(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "sha256"}


def mistakes(machine: Machine) -> dict[str, dict[str, Any]]:
    """What users get wrong: exit status and message of each."""
    run, out = "s3://bucket/runs/tiny", ("--out", "s3://bucket/out/other.jsonl")
    row = '{"image": "s3://elsewhere/data/x.png", "total": "1.00"}\n'
    machine.store("fs.pipe('bucket/outside/labels.jsonl', words[0].encode())", row)
    no_keys = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}
    wrong = ("name=outside", "data.train=s3://bucket/outside")
    calls: dict[str, subprocess.CompletedProcess[str]] = {
        "no such bucket": machine.tailor("predict", "s3://nowhere/runs/tiny", "s3://bucket/scans", *out),
        "no such folder": machine.tailor("init", "s3://bucket/dta", "--force"),
        "bucket of the output missing": machine.tailor(
            "predict", run, "s3://bucket/scans", "--out", "s3://nowhere/out.jsonl"
        ),
        "no credentials": machine.tailor("init", "s3://bucket/data", "--force", **no_keys),
        "row of another bucket": machine.tailor("run", "recipe.yaml", *SETTINGS, *wrong),
        "output in a store": machine.tailor("run", "recipe.yaml", "output=s3://bucket/runs"),
    }
    machine.store("name = 'bucket/runs/tiny/adapter/tailor.json'; fs.pipe(name, fs.cat(name).replace(b'a', b'b'))")
    calls["damaged adapter"] = machine.tailor("predict", run, "s3://bucket/scans", *out)
    return {
        name: {
            "status": done.returncode,
            "message": [line for line in done.stderr.splitlines() if line.startswith("Error")],
            "holds": done.returncode == 2 and SAID[name] in done.stderr and "Traceback" not in done.stderr,
        }
        for name, done in calls.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "object_store.json")
    parser.add_argument("--ray", action="store_true", help="also predict with workers of Ray")
    arguments = parser.parse_args()
    more = (RAY,) if arguments.ray else ()
    python = Path(os.environ.get("OBJECT_STORE_PYTHON") or make_environment(*more))
    with tempfile.TemporaryDirectory(prefix="tailor-store-") as folder, s3_server(python) as address:
        place = Path(folder)
        first, second = Machine(python, place / "first", address), Machine(python, place / "second", address)
        result: dict[str, Any] = {"packages": [*PACKAGES, *more], "walk": walk(first, second, place)}
        if arguments.ray:
            result["ray"] = with_ray(first, second)
        result["mistakes"] = mistakes(first)
    result["holds"] = all({**result["walk"], **result.get("ray", {})}.values()) and all(
        entry["holds"] for entry in result["mistakes"].values()
    )
    print(json.dumps(result, indent=2, ensure_ascii=False))
    arguments.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
