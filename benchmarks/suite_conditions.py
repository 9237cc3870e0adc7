"""Whether the suite passes whatever the terminal, the temporary folder, the order and the number of workers are.

    python benchmarks/suite_conditions.py                      every combination below, the quick tests alone: 8 minutes
    python benchmarks/suite_conditions.py --whole --only wide  the whole suite under one of them: 30 minutes

Each row is one pytest run of its own; its counts are added to results/suite_conditions.json as soon as it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "suite_conditions.json"
SEED = "SUITE_ORDER_SEED"


@dataclass(frozen=True)
class Conditions:
    columns: int
    workers: int
    folder: str  # how the temporary folder's path looks
    seed: int | None = None  # of the order; None: as pytest finds the tests
    locale: str = "C.UTF-8"
    user: str = "someone"


CONDITIONS = {
    "narrow": Conditions(40, 4, "a"),
    "usual": Conditions(80, 2, "b", seed=1),
    "wide": Conditions(200, 0, "/".join(["a folder with a rather long name"] * 5), seed=2),
    "posix": Conditions(80, 4, "c", seed=3, locale="POSIX", user="x"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shuffle the files, and the tests within each file, whose fixtures are then still made once."""
    if seed := os.environ.get(SEED):
        chance = random.Random(int(seed))
        files = sorted({item.path for item in items})
        places = {path: chance.random() for path in files}
        within = {item.nodeid: chance.random() for item in sorted(items, key=lambda item: item.nodeid)}
        items.sort(key=lambda item: (places[item.path], str(item.path), within[item.nodeid]))


def run(conditions: Conditions, arguments: list[str]) -> dict[str, int]:
    """Counts of pytest's last line: passed, failed, skipped, errors."""
    with tempfile.TemporaryDirectory(prefix="t") as root:
        base = Path(root) / conditions.folder
        base.mkdir(parents=True)
        environment = os.environ | {
            "COLUMNS": str(conditions.columns),
            "LC_ALL": conditions.locale,
            "USER": conditions.user,
            "LOGNAME": conditions.user,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        }
        environment.pop(SEED, None)
        if conditions.seed is not None:
            environment[SEED] = str(conditions.seed)
        command = [sys.executable, "-m", "pytest", "-p", "benchmarks.suite_conditions"]
        command += [f"--basetemp={base / 'pytest'}", f"--numprocesses={conditions.workers}", *arguments]
        process = subprocess.Popen(command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, text=True)
        last = ""
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if re.search(r"\d+ (passed|failed|error)", line) else last
        process.wait()
    return {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CONDITIONS, action="append", help="these conditions alone")
    parser.add_argument("--whole", action="store_true", help="the slow tests too")
    options, arguments = parser.parse_known_args()
    bad = False
    for name in options.only or CONDITIONS:
        counts = run(CONDITIONS[name], [*([] if options.whole else ["-m", "not slow"]), *arguments])
        bad |= "passed" not in counts or bool(set(counts) & {"failed", "error", "errors"})
        print(name, counts)
        stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        stored[f"{name}, {'whole' if options.whole else 'quick'}"] = {**asdict(CONDITIONS[name]), "counts": counts}
        RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    raise SystemExit(bad)


if __name__ == "__main__":
    main()
