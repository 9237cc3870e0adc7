"""Bad files of what people and runs decided: calibrations, decisions about labels, databases of reviews."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reliability.case import Case
from reliability.corpus_data import INIT, TESTS
from reliability.mutations import WHOLE_DOCUMENTS, damaged, documents, lines
from reliability.workspace import recipe

CALIBRATION = "runs/g/calibration.json"
DECISIONS = "decisions.jsonl"


def calibrations(workspace: Path) -> Iterator[Case]:
    """`calibration.json` of another shape, read and applied to a prediction."""
    document = json.loads(json.dumps(invented_calibration().row()))
    for what, changed in documents(document, "calibration", each=2):
        yield Case(what, _apply, {CALIBRATION: json.dumps(changed).encode()})
    for what, content in WHOLE_DOCUMENTS:
        yield Case(what, _apply, {CALIBRATION: content})


def invented_calibration() -> Any:
    """A calibration with a promise, fitted on invented values."""
    from mllm_tailor.run.calibrate import RunCalibration
    from mllm_tailor.scoring.accept import Promise
    from mllm_tailor.scoring.calibration import fit
    from mllm_tailor.scoring.judged import JudgedValue

    chance = random.Random(0)
    values = []
    for number in range(80):
        mean = chance.random()
        scores = {"mean": mean, "least": mean * chance.random()}
        values.append(JudgedValue("total", scores, chance.random() < mean, number, number))
    promise = Promise(0.95, 0.9, 0.8, 80, 20, 1, 20)
    counts = {"samples": 80, "values": 80, "units": 80}
    return RunCalibration(metric="exact", mode="constrained", calibration=fit(values), promise=promise, **counts)


def _apply() -> None:
    from mllm_tailor.core.errors import TailorError
    from mllm_tailor.core.sample import Prediction
    from mllm_tailor.run.calibrate import read_calibration
    from mllm_tailor.run.run_dir import RunFolder

    try:
        calibration = read_calibration(RunFolder(Path("runs/g")))
        print(calibration.apply(Prediction("a", "", {"total": "1"}, raw={"total": {"mean": 0.9, "least": 0.5}})).row())
    except TailorError as error:
        print(f"Error: {error}")


def corrections(workspace: Path) -> Iterator[Case]:
    """Decisions of `tailor audit`, which a recipe applies to its labels."""
    rows = [
        {"id": "s2", "field": "total", "decision": "fix", "label": "2.50", "value": "9.99", "note": "seen"},
        {"id": "s3", "field": "total", "decision": "keep", "label": "3.50"},
        {"id": "s4", "field": "total", "decision": "fix", "label": "4.50", "value": None},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    bad = [*lines(text, "corrections", 60), *((name, content) for name, content in WHOLE_DOCUMENTS)]
    for what, content in bad:
        given = content.encode("utf-8", "replace") if isinstance(content, str) else content
        yield Case(what, _correct, {DECISIONS: given}, ("d",))
    for value in ("nowhere.jsonl", "d", "/dev/zero", "", "[red].jsonl", "a\0b"):
        yield Case(f"a file called {value!r}", lambda value=value: _correct(value), {}, ("d",))  # type: ignore[misc]


def _correct(file: str = DECISIONS) -> None:
    from mllm_tailor.core.errors import TailorError
    from mllm_tailor.recipe import make_recipe
    from mllm_tailor.run.dataset import prepare
    from mllm_tailor.run.resolve import resolve

    try:
        print(prepare(resolve(make_recipe(recipe(data={"corrections": file}))), decode=False)[0].train[0].fields)
    except TailorError as error:
        print(f"Error: {error}")


def reviews(workspace: Path) -> Iterator[Case]:
    """The database of `tailor review` as a data set."""
    sys.path.insert(0, str(TESTS))
    from fixtures.data_examples import EXAMPLES, write_example

    example = next(example for example in EXAMPLES if example.layout == "review")
    with tempfile.TemporaryDirectory() as folder:
        write_example(example, Path(folder))
        files = {f"data/{file.relative_to(folder).as_posix()}": file.read_bytes()
                 for file in Path(folder).rglob("*") if file.is_file()}  # fmt: skip
    name = next(name for name in files if name.endswith(".db"))
    for number in range(4):
        for what, content in damaged(files[name], f"review {number}"):
            yield Case(f"{what} {number}", INIT, files | {name: content})
    for what, content in WHOLE_DOCUMENTS:
        yield Case(what, INIT, files | {name: content})
    for lost in files:
        yield Case(f"without {lost}", INIT, {other: content for other, content in files.items() if other != lost})
