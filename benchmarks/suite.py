"""What the tests cost in CPU seconds, in all, by file and by test.

    python benchmarks/suite.py                          the whole suite, two worker processes
    python benchmarks/suite.py -m "not slow"            the quick tests; any further arguments go to pytest
    python benchmarks/suite.py --store NAME ...         adds the totals to results/suite.json under this name
    python benchmarks/suite.py --show 200 ...           prints the 200 most expensive files and tests instead of 25

CPU seconds are those of all processes, so other work on the machine adds little to them. What the processes that a test
starts cost is counted with the test; start-up and collection are what is left of the total.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "suite.json"
VARIABLE = "SUITE_CPU_SECONDS"  # where the pytest process writes what its tests cost


def cpu_seconds() -> float:
    """Of this process and of the children it has waited for."""
    return sum(os.times()[:4])


class CpuSeconds:
    """A pytest plugin; in workers of pytest-xdist it measures, in the main process it collects."""

    def __init__(self) -> None:
        self.last = cpu_seconds()
        self.tests: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        self.last = cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Any:
        report = yield
        now = cpu_seconds()
        report.cpu_seconds, self.last = now - self.last, now
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.tests[report.nodeid] += report.cpu_seconds

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            Path(os.environ[VARIABLE]).write_text(json.dumps(self.tests))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CpuSeconds(), "cpu_seconds")


def by_file(tests: dict[str, float]) -> dict[str, float]:
    files: dict[str, float] = defaultdict(float)
    for name, seconds in tests.items():
        files[name.partition("::")[0]] += seconds
    return files


def show(title: str, costs: dict[str, float], number: int) -> None:
    print(f"\n{title}")
    for name, seconds in sorted(costs.items(), key=lambda item: -item[1])[:number]:
        print(f"{seconds:8.1f}  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", metavar="NAME")
    parser.add_argument("--show", metavar="NUMBER", type=int, default=25)
    told, words = parser.parse_known_args()
    if not any(word in ("-n", "--numprocesses") or word.startswith("-n") for word in words):
        words += ["--numprocesses", "2", "--dist", "worksteal"]
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder) / "costs.json"
        path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {VARIABLE: str(costs), "PYTEST_PLUGINS": "benchmarks.suite", "PYTHONPATH": path}
        environment["PYTHONDONTWRITEBYTECODE"] = ""  # as in the Makefile
        begun, before = time.monotonic(), cpu_seconds()
        done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=HERE.parent, env=environment)
        seconds, cpu = time.monotonic() - begun, cpu_seconds() - before
        tests = json.loads(costs.read_text())
    show("CPU seconds by file", by_file(tests), told.show)
    show("CPU seconds by test", tests, told.show)
    total = {"cpu_seconds": round(cpu), "seconds": round(seconds), "tests": len(tests), "failed": done.returncode != 0}
    print(f"\n{total}; {cpu - sum(tests.values()):.0f} CPU seconds are start-up and collection")
    if told.store:
        stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps(stored | {told.store: total}, indent=1) + "\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
