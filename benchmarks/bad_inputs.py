"""Bad inputs of every kind, each of which is owed a message: no traceback, no crash, no hang.

    python benchmarks/bad_inputs.py                             # all of them
    python benchmarks/bad_inputs.py --kind "model folders"      # one kind
    python benchmarks/bad_inputs.py --sample 60                 # a fixed choice, as CI takes
    python benchmarks/bad_inputs.py --only "recipes: two documents" --show

Every input follows from its name: recipes, overrides, command lines, label files of every layout, odd files, media,
model folders, run files, predictions, manifests, calibrations, corrections and reviews. A command is tried on each in
a forked child of its own with limits of time and memory. The command fails when any ends in a traceback, by a signal,
or not in time. Counts go to benchmarks/results/bad_inputs.json; docs/reliability.md shows them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reliability.case import try_case
from reliability.corpus import KINDS, Named, corpus, sample
from reliability.forked import Ended, preload
from reliability.workspace import PLACE, make_workspace

from mllm_tailor.core.io import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "bad_inputs.json"


def outcome(ended: Ended) -> str:
    """What an input came to: `accepted`, `refused`, or how it failed."""
    if ended.timed_out:
        return "no end"
    if ended.crashed:
        return "traceback" if ended.status >= 0 else f"signal {-ended.status}"
    told = ended.output.startswith("Error: ")  # of a function that is called in the place of a command
    return "accepted" if ended.status in (0, 1) and not told else "refused"


def try_all(cases: Sequence[Named], workspace: Path, folder: Path, *, show: bool = False) -> dict[str, tuple[str, str]]:
    """Name of every case -> (outcome, last line)."""
    results = {}
    began = time.monotonic()
    for number, named in enumerate(cases, 1):
        ended = try_case(named.case, workspace, folder / PLACE)
        word = outcome(ended)
        results[named.name] = (word, ended.error if word == "refused" else ended.last_line)
        if show:
            print(ended.output)
        if word not in ("accepted", "refused"):
            print(f"{word}: {named.name}: {ended.last_line}", flush=True)
        if number % 100 == 0:
            print(f"{number} of {len(cases)}, {time.monotonic() - began:.0f} s", flush=True)
    return results


def counts(results: dict[str, tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Outcomes of every kind."""
    kinds: dict[str, Counter[str]] = {}
    for name, (word, _) in results.items():
        kinds.setdefault(name.partition(": ")[0], Counter())[word] += 1
    return {kind: dict(sorted(words.items())) for kind, words in kinds.items()}


def save(results: dict[str, tuple[str, str]]) -> None:
    """Replace the counts of the kinds that were tried."""
    stored: dict[str, Any] = read_json(RESULTS) if RESULTS.exists() else {"kinds": {}}
    commit = (
        os.environ.get("FAULTS_COMMIT")
        or subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    )
    kinds = {kind: {"outcomes": words, "commit": commit.strip(), "date": time.strftime("%Y-%m-%d")}
             for kind, words in counts(results).items()}  # fmt: skip
    write_json(RESULTS, {"kinds": {**stored["kinds"], **kinds}})


def main() -> None:
    """Try what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=KINDS, default=[])
    parser.add_argument("--only", action="append", default=[], help="names that begin so")
    parser.add_argument("--sample", type=int, help="a fixed choice of so many")
    parser.add_argument("--show", action="store_true", help="print what every command prints")
    parser.add_argument("--save", action="store_true", help="store the counts")
    arguments = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as name:
        folder = Path(name)
        make_workspace(folder / PLACE)
        (folder / PLACE).rename(folder / "workspace")
        cases = corpus(folder / "workspace", arguments.kind)
        if arguments.only:
            cases = [case for case in cases if case.name.startswith(tuple(arguments.only))]
        if arguments.sample:
            cases = sample(cases, arguments.sample)
        results: dict[str, tuple[str, str]] = {}
        for kind in dict.fromkeys(case.kind for case in cases):
            own = [case for case in cases if case.kind == kind]
            results |= (latest := try_all(own, folder / "workspace", folder, show=arguments.show))
            if arguments.save:
                save(latest)
    for kind, words in counts(results).items():
        print(f"{kind}: {sum(words.values())}: " + ", ".join(f"{count} {word}" for word, count in words.items()))
    failed = sum(word not in ("accepted", "refused") for word, _ in results.values())
    print(f"{len(results)} inputs, {failed} without a message")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
