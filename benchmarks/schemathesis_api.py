"""Is there a request that ends in a 5xx? Schemathesis derives them from /openapi.json, in its own environment.

    python benchmarks/schemathesis_api.py --examples 50

Serves a tiny model with a random adapter. The exit status is that of Schemathesis; results/schemathesis.json holds its
last lines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from clients import install_python, start_server
from served import tiny_run

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50, help="of each endpoint")
    parser.add_argument("--environment", type=Path, help="virtual environment to use or make; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.environment or Path(temporary) / "environment"
        python = install_python(folder, ["schemathesis"])[0]
        run, _ = tiny_run(Path(temporary))
        server, url = start_server(run)
        words = ["run", f"{url}/openapi.json", "--checks", "not_a_server_error", "--seed", "1"]
        words += ["--max-examples", str(options.examples), "--phases", "examples,coverage,fuzzing"]
        try:
            command = [str(Path(python).with_name("schemathesis").absolute()), *words]
            done = subprocess.run(command, capture_output=True, text=True, cwd=temporary)
        finally:
            server.terminate()
            server.wait()
    print(done.stdout[-6000:], done.stderr[-2000:])
    lines = [line for line in done.stdout.splitlines() if line.strip()][-25:]
    result = {"examples": options.examples, "status": done.returncode, "last_lines": lines}
    (HERE / "results" / "schemathesis.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
