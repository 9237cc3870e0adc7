"""Do real clients read a typed receipt from `tailor serve`? Each is installed from its registry in its own environment.

    python benchmarks/clients.py                  # a tiny model with random adapter, made here: forms, not readings
    python benchmarks/clients.py --run runs/demo  # a run of yours that extracts texts

Writes results/clients.json: versions, seconds of installation, and what each client read. A client whose registry
cannot be reached is named and left out; one that fails makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from served import tiny_run

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE / "clients"
PYTHON = {
    "openai": ("read_openai.py", ["openai"]),
    "langchain-openai": ("read_langchain.py", ["langchain-openai"]),
    "pydantic-ai": ("read_pydantic_ai.py", ["pydantic-ai-slim[openai]"]),
    "instructor": ("read_instructor.py", ["instructor"]),
}
NODE = {
    "openai (npm)": ("read_openai.mjs", ["openai", "zod"]),
    "ai (npm)": ("read_ai.mjs", ["ai", "@ai-sdk/openai-compatible", "zod"]),
}


def held_out_image(run: Path) -> Path:
    """The first held-out picture of a run."""
    row = json.loads((run / "held_out.jsonl").read_text().splitlines()[0])
    return Path(row["sample"]["media"][0]["path"]).resolve()


def start_server(run: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server that is ready, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mllm_tailor.cli.main", "serve", str(run), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        if server.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                return server, f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.2)


def install_python(folder: Path, packages: list[str]) -> list[str]:
    """A virtual environment; the command that runs a script in it."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return [str(python)]


def install_node(folder: Path, packages: list[str]) -> list[str]:
    """A folder with node's packages; scripts are copied beside them."""
    if not (folder / "node_modules").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(["npm", "install", *quiet, *packages], cwd=folder, check=True)
    for script in SCRIPTS.glob("*.mjs"):
        shutil.copy(script, folder)
    return ["node"]


def versions(folder: Path, command: list[str], packages: list[str]) -> dict[str, str]:
    """Of the packages that were asked for."""
    names = [package.partition("[")[0] for package in packages]
    if command == ["node"]:
        notes = {name: folder / "node_modules" / name / "package.json" for name in names}
        return {name: json.loads(path.read_text())["version"] for name, path in notes.items()}
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    done = subprocess.run([*command, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.split(), strict=True))


def try_client(name: str, root: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Install one client and let it read."""
    script, packages = {**PYTHON, **NODE}[name]
    folder = root / name.replace(" (npm)", "-npm")
    started = time.perf_counter()
    try:
        command = install_python(folder, packages) if name in PYTHON else install_node(folder, packages)
    except (OSError, subprocess.CalledProcessError) as error:
        return {"installed": False, "reason": str(error)}
    row: dict[str, Any] = {"installed": True, "install_seconds": round(time.perf_counter() - started, 1)}
    row["versions"] = versions(folder, command, packages)
    path = SCRIPTS / script if name in PYTHON else folder / script
    done = subprocess.run([*command, str(path)], env={**os.environ, **environment}, capture_output=True, text=True)
    return row | _read(done)


def try_curl(environment: dict[str, str]) -> dict[str, Any]:
    """curl and a form."""
    command = ["sh", str(SCRIPTS / "read_curl.sh")]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    row = {"installed": True, **_read(done)}
    return row | {"read": row["read"]["fields"]} if row["ok"] else row


def _read(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode:
        return {"ok": False, "error": done.stderr[-1500:]}
    return {"ok": True, "read": json.loads(done.stdout.strip().splitlines()[-1])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--environments", type=Path, help="folder that keeps them; default: a temporary one")
    parser.add_argument("--only", action="append", help="a client; may be given several times")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "clients.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run, files = (options.run, [held_out_image(options.run)]) if options.run else tiny_run(Path(temporary))
        server, url = start_server(run)
        try:
            with urllib.request.urlopen(f"{url}/v1/models") as answer:
                model = json.load(answer)["data"][0]
            environment = {
                "CLIENT_URL": f"{url}/v1",
                "CLIENT_MODEL": model["id"],
                "CLIENT_IMAGE": str(files[0]),
                "CLIENT_FIELDS": ",".join(model["tailor"]["fields"]),
            }
            rows = {"curl": try_curl(environment)}
            for name in options.only or (*PYTHON, *NODE):
                rows[name] = try_client(name, options.environments or Path(temporary), environment)
                print(name, json.dumps(rows[name])[:2000], flush=True)
        finally:
            server.terminate()
            server.wait()
    read = [row["read"] for row in rows.values() if row.get("ok")]
    equal = all(each == read[0] for each in read)
    result = {"clients": rows, "equal": equal, "model": "tiny" if options.run is None else run.name}
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    tried = [row for row in rows.values() if row["installed"]]
    print(f"{sum(row['ok'] for row in tried)} of {len(tried)} installed clients read the receipt; equal: {equal}")
    return 0 if all(row["ok"] for row in tried) and equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
