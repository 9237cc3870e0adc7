"""docs/reliability.md: what happens to a run when the machine, the disk or the data fail, as measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
HEAD = """# Reliability

What becomes of a run when the machine, the disk or the data fail. The tables are made from stored results
(`make docs`):

```
python benchmarks/faults.py --save        # injected faults
python benchmarks/bad_inputs.py --save    # bad inputs of every kind
python benchmarks/fuzz.py --save          # a fuzzer over everything that reads files of others
```

How it is done is in [architecture](architecture.md#the-run-folder): one owner of a run folder, checksums of
everything in it, fingerprints of the data, files that are whole or absent, replies written as they are made.

## Injected faults

Each experiment repeats the smallest whole job (a model of 45,000 weights, eight images, six steps, a checkpoint after
each) and injects one kind of fault at random moments or places that follow from a seed. Then the same command runs on,
and what it leaves is compared with an undisturbed run: weights, optimizer state, replies, scores and losses bit for
bit, and no process is left at work. Commands run in forked children of one process; worker processes are forked too,
which saves their imports; Ctrl-C during imports is sent to interpreters of their own. Servers are killed while clients
send requests: an uploaded file, a batch and replies of `tailor serve`, decisions of `tailor review`; whatever was
answered with success must be there in the end. The commit is the one with which the measured code arrived on the main
branch. An experiment of `benchmarks/faults.py` that is not in the table has not been stored yet.

| fault | how | injected | what happened | failures | commit, date |
|---|---|---|---|---|---|
"""
INPUTS = """
## Bad inputs

Inputs that cannot be right, or are odd: recipes, overrides, command lines, label files of every layout in
[data](data.md), files beside them, media, model folders, files of a run, predictions, manifests, calibrations,
decisions about labels and databases of reviews. Each is tried in a process of its own with limits of time and memory,
and must end in a message or in a result. *Accepted*: the rest of it was usable, or the command stated in its result
what was wrong.

| kind | inputs | refused with a message | accepted | failures | commit, date |
|---|---|---|---|---|---|
"""
FUZZ = """
## Fuzzing

Hypothesis changes good inputs of each kind, guided by chance alone, and shrinks what fails. Minutes are wall-clock
time on a machine shared with other work. What was found is fixed and has a test (`tests/data/test_odd_shapes.py` and
others).

| target | inputs | minutes | CPU seconds | kinds of uncaught exceptions | date |
|---|---|---|---|---|---|
"""
LIMITS = """
## What is not covered

- **A chat template that depends on the data.** A template is tried on three conversations in a process with limits
  (10 CPU seconds, 1 GiB, 4 million characters). One that works without end for another conversation is not noticed.
- **Decoders.** Media are decoded in processes of their own while data are checked. In training and prediction they are
  decoded in the process itself: a file that is replaced after the check and brings a decoder down ends the command.
- **Finished predictions.** While `tailor predict` writes, every row has a checksum. A finished file outside of a run
  folder belongs to the user, who may edit it: `tailor score` reads it as it is.
- **The start of the interpreter.** Python itself answers Ctrl-C in the first hundredths of a second, before `tailor` is
  loaded.
- **The stamps of files.** A media file whose size, modification time and change time are as before counts as the same.
"""


def _stored(name: str) -> Any:
    file = RESULTS / name
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _faults() -> Iterator[str]:
    for row in _stored("faults.json").get("experiments", []):
        outcomes = "; ".join(f"{count} × {word}" for word, count in row["outcomes"].items()) or "-"
        where = f"{row['commit']}, {row['date']}"
        cells = (row["name"], row["how"], row["injected"], outcomes, len(row["failures"]), where)
        yield "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |\n"


def _inputs() -> Iterator[str]:
    for kind, row in _stored("bad_inputs.json").get("kinds", {}).items():
        counts = row["outcomes"]
        refused, accepted, total = counts.get("refused", 0), counts.get("accepted", 0), sum(counts.values())
        where = f"{row['commit']}, {row['date']}"
        yield f"| {kind} | {total} | {refused} | {accepted} | {total - refused - accepted} | {where} |\n"


def _fuzz() -> Iterator[str]:
    for name, row in _stored("fuzz.json").items():
        found = len(row["failures"])
        yield f"| {name} | {row['inputs']:,} | {row['minutes']} | {row['cpu_seconds']} | {found} | {row['date']} |\n"


def _machine() -> str:
    stated = [row["machine"] for row in _stored("faults.json").get("experiments", [])]
    machines = {f"{facts['cpu_cores']} CPU cores, {facts['memory_gib']} GiB of memory" for facts in stated}
    return "".join(f"\nMachine: {machine}, shared with other work.\n" for machine in sorted(machines))


def reliability_page() -> str:
    """The whole page."""
    return "".join([HEAD, *_faults(), _machine(), INPUTS, *_inputs(), FUZZ, *_fuzz(), LIMITS])
