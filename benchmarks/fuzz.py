"""A fuzzer over everything that reads what others wrote: label files, recipes, models, predictions, requests.

    python benchmarks/fuzz.py                              # 30 minutes for each target
    python benchmarks/fuzz.py --minutes 2 --target recipes

Hypothesis exchanges, removes, repeats and invents values in good inputs and shrinks what fails. Anything but a message
(`TailorError`) or a result is a failure; the command prints the smallest input found and ends with status 1. Counts
and CPU seconds go to benchmarks/results/fuzz.json (`--save`). Inputs that fail become tests.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from reliability.corpus_models import DOCUMENTS
from reliability.forked import preload, run
from reliability.mutations import REMOVED, paths, put
from reliability.requests import as_text, encoded, good_requests
from reliability.workspace import make_workspace, recipe, write_model

from mllm_tailor.core.errors import TailorError
from mllm_tailor.core.io import read_json, write_json
from mllm_tailor.core.sample import Prediction

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
TESTS = Path(__file__).resolve().parents[1] / "tests"
ROUND = 300  # examples before the clock is looked at

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["", "..", "a\0b", "\ud800", "[red]", "\x1b[2J", "x" * 300, "data:,x", "{{ 1/0 }}", "<image>"])
    | st.sampled_from([2**63, -(2**63), 10**400, 1e308, -0.0, 0])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A good document with up to three values exchanged, removed or put into a list."""
    for _ in range(draw(st.integers(1, 3))):
        known = list(paths(document))
        if not known:
            return draw(values)
        path = draw(st.sampled_from(known))
        kind = draw(st.sampled_from(["exchange", "exchange", "remove", "wrap", "borrow"]))
        old = document
        for key in path:
            old = old[key]
        borrowed = document
        for key in draw(st.sampled_from(known)) if kind == "borrow" else ():
            borrowed = borrowed[key]
        new = {"exchange": draw(values), "remove": REMOVED, "wrap": [old], "borrow": borrowed}[kind]
        document = put(document, path, new)
    return document


@st.composite
def changed_text(draw: st.DrawFn, content: str) -> str:
    """A text file: values exchanged where all or a line of it is JSON, else characters cut out and put in."""
    rows = content.splitlines(keepends=True)
    index = draw(st.integers(0, max(0, len(rows) - 1)))
    for text, whole in ((content, True), (rows[index] if rows else "", False)):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if not isinstance(value, (dict, list)):
            continue
        new = json.dumps(draw(changed(value)), ensure_ascii=draw(st.booleans()))
        return new if whole else "".join([*rows[:index], new + "\n", *rows[index + 1 :]])
    start = draw(st.integers(0, len(content)))
    inserted = draw(st.text(max_size=4) | st.sampled_from(["\t", "\n", '"', "|", ",,", "\0", "\ufeff", "="]))
    return content[:start] + inserted + content[start + draw(st.integers(0, 8)) :]


# --- Targets ---------------------------------------------------------------------------------------------------------

Target = tuple[st.SearchStrategy[Any], Callable[[Any], object]]


@contextmanager
def label_files(folder: Path) -> Iterator[Target]:
    """Layout readers and the proposal of a recipe, over the examples of docs/data.md."""
    sys.path.insert(0, str(TESTS))
    from fixtures.data_examples import EXAMPLES, write_example

    from mllm_tailor.data import propose_recipe, read, read_samples

    read.SHAPE_ERRORS = ()  # a reader is to name the row itself
    texts: list[tuple[int, Path, str]] = []
    for number, example in enumerate(EXAMPLES):
        write_example(example, folder / str(number))
        texts += [(number, folder / str(number) / name, content) for name, content in example.files
                  if not name.endswith((".parquet", ".arrow", ".tar"))]  # fmt: skip

    @st.composite
    def inputs(draw: st.DrawFn) -> tuple[int, str]:
        index = draw(st.integers(0, len(texts) - 1))
        return index, draw(changed_text(texts[index][2]))

    def read(given: tuple[int, str]) -> None:
        number, path, content = texts[given[0]]
        path.write_text(given[1], encoding="utf-8", errors="replace")
        try:
            for layout in (None, EXAMPLES[number].layout):
                issues: list[Any] = []
                try:
                    propose_recipe(read_samples(folder / str(number), layout, on_issue=issues.append), issues)
                except TailorError:
                    continue
        finally:
            path.write_text(content, encoding="utf-8")

    yield inputs(), read


@contextmanager
def recipes(folder: Path) -> Iterator[Target]:
    """The recipe reader: YAML texts, and good recipes with values exchanged, resolved as a run resolves them."""
    from mllm_tailor.recipe import dump_recipe, make_recipe, read_recipe
    from mllm_tailor.run.execute import resolve_stages

    good = yaml.safe_load(dump_recipe(make_recipe(recipe())))
    stages = recipe(stages=[{"name": "a", "task": "answer"}, {"name": "b", "train": {"epochs": 1}}])
    texts = [yaml.safe_dump(item, sort_keys=False) for item in (good, stages, recipe())]
    path = folder / "r.yaml"

    def read(content: str) -> None:
        path.write_text(content, encoding="utf-8", errors="surrogatepass")
        resolve_stages(read_recipe(path))

    documents = st.sampled_from([good, stages]).flatmap(changed).map(_dump)
    yield documents | st.sampled_from(texts).flatmap(changed_text) | st.text(max_size=60), read


def _dump(document: Any) -> str:
    try:
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:
        return json.dumps(document, default=str)


@contextmanager
def prediction_rows(folder: Path) -> Iterator[Target]:
    """Rows of predictions and labels for `tailor score`, of run folders, and of manifests for `tailor predict`."""
    from mllm_tailor.commands.console import console
    from mllm_tailor.commands.score import score_predictions
    from mllm_tailor.generation import read_inputs
    from mllm_tailor.run.run_dir import read_predictions

    logging.getLogger("mllm_tailor").setLevel(logging.ERROR)
    console.quiet = True
    own = Prediction("s0", "text", {"total": "1.50", "lines": [{"a": "1"}]}, {"total": 0.5}).row()
    rows = [
        own,
        {"id": "s1", "fields": {"total": "2"}, "confidence": {"total": 0.1}},
        {"file": "s2.png", "text": '{"total": 3}'},
    ]
    labels = [
        {"id": f"s{number}", "fields": {"total": str(number), "lines": [{"a": number}]}, "group": "g"}
        for number in range(3)
    ]
    asked = [{"image": "a.png", "question": "q", "id": "a", "options": ["x"], "history": [["a", "b"]], "system": "s"},
             {"video": "a.mp4", "start": 0, "end": 1}, {"views": ["a.png", "b.png"]},
             {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, "and?"]}]}]  # fmt: skip

    def read(given: tuple[str, Any]) -> None:
        kind, document = given
        items = document if isinstance(document, list) else [document]
        path = folder / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        if kind == "asked":
            read_inputs([path])
            return
        other = folder / ("labels.jsonl" if kind == "rows" else "rows.jsonl")
        good = labels if kind == "rows" else rows
        other.write_text("".join(json.dumps(item) + "\n" for item in good))
        for work in (lambda: read_predictions(path), lambda: score_predictions(
                folder / "labels.jsonl", [folder / "rows.jsonl"], metrics=(), kinds=(), group_by=None)):  # fmt: skip
            try:
                work()
            except TailorError:
                continue

    yield (
        st.sampled_from([("rows", rows), ("labels", labels), ("asked", asked)]).flatmap(
            lambda item: st.tuples(st.just(item[0]), changed(item[1]))
        ),
        read,
    )


@contextmanager
def model_folders(folder: Path) -> Iterator[Target]:
    """Configuration, header of the weights, processor and template files of a model, opened without its weights."""
    from mllm_tailor.models import load_meta_model
    from mllm_tailor.models.checkpoint import read_checkpoint
    from mllm_tailor.models.inputs.internvl_processor import open_processor
    from mllm_tailor.models.load import find_family
    from mllm_tailor.models.native import own_config

    if (ended := run(lambda: write_model(folder / "model"), folder)).status:
        raise SystemExit(ended.output)
    source = folder / "model"
    whole = (source / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    head = json.loads(whole[8 : 8 + length])
    head = dict(list(head.items())[:4])
    documents = {name: json.loads((source / name).read_text())
                 for name in DOCUMENTS}  # fmt: skip
    documents["model.safetensors"] = head

    def read(given: tuple[str, Any]) -> None:
        name, document = given
        path = source / name
        kept = path.read_bytes()
        text = json.dumps(document).encode("utf-8", "replace")
        path.write_bytes(struct.pack("<Q", len(text)) + text if name.endswith(".safetensors") else text)
        try:
            checkpoint = read_checkpoint(source, "model")
            family = find_family(checkpoint)
            own_config(checkpoint, family)
            open_processor(checkpoint)
            load_meta_model(str(source), None)
        finally:
            path.write_bytes(kept)

    yield (
        st.sampled_from(sorted(documents.items())).flatmap(lambda item: st.tuples(st.just(item[0]), changed(item[1]))),
        read,
    )


@contextmanager
def server_requests(folder: Path) -> Iterator[Target]:
    """Requests to every endpoint of a server with a tiny model, which answers them; a 5xx is a failure too."""
    from starlette.testclient import TestClient

    from mllm_tailor.serving.app import make_app
    from mllm_tailor.serving.served import served_models
    from mllm_tailor.serving.settings import ServeSettings
    from mllm_tailor.serving.state import ServerState
    from mllm_tailor.serving.worker import EngineWorker

    make_workspace(folder / "workspace")
    before = Path.cwd()
    os.chdir(folder / "workspace")
    models, options = served_models([Path("runs/g")]), ServeSettings()
    state = ServerState(options, {model.name: model for model in models}, EngineWorker(models, 0.0))
    good = good_requests(Path("d/images/0.png"))

    @st.composite
    def inputs(draw: st.DrawFn) -> tuple[str, str]:
        path, body = draw(st.sampled_from(good))
        text = as_text(draw(changed(body))) if draw(st.booleans()) else draw(changed_text(as_text(body)))
        return path, text

    with TestClient(make_app(state, folder / "files"), base_url="http://localhost") as client:

        def read(given: tuple[str, str]) -> None:
            body, kind = encoded(*given)
            answer = client.post(given[0], content=body, headers={"content-type": kind})
            if answer.status_code >= 500:
                raise RuntimeError(f"{answer.status_code}: {answer.text}")

        while client.get("/health").status_code != 200:
            time.sleep(0.05)
        yield inputs(), read
    os.chdir(before)


TARGETS = {
    "label files": label_files,
    "recipes": recipes,
    "prediction rows": prediction_rows,
    "model folders": model_folders,
    "server requests": server_requests,
}


# --- The loop --------------------------------------------------------------------------------------------------------


def fuzz(target: Target, minutes: float, first_seed: int) -> dict[str, Any]:
    """Try inputs until the time is over; every failure is found once, by where it was raised."""
    strategy, read = target
    tried, failures, number = 0, dict[str, str](), first_seed
    began, cpu = time.monotonic(), time.process_time()

    def check(value: Any) -> None:
        nonlocal tried
        tried += 1
        try:
            read(value)
        except TailorError:
            return
        except (Exception, RecursionError) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.name}"
            if where in failures:
                return
            raise

    while time.monotonic() - began < 60 * minutes:
        number += 1
        options = settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                           phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False)  # fmt: skip
        test = seed(number)(options(given(strategy)(check)))
        try:
            test()
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.name}"
            failures[where] = str(getattr(error, "__notes__", [""])[0])[:1500]
            print(f"FAILURE {where}: {error}\n{failures[where]}", flush=True)
            traceback.print_exception(error)
    return {"inputs": tried, "minutes": round((time.monotonic() - began) / 60, 1),
            "cpu_seconds": round(time.process_time() - cpu), "failures": sorted(failures)}  # fmt: skip


def main() -> None:
    """Fuzz what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=TARGETS, default=[])
    parser.add_argument("--minutes", type=float, default=30.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="another one tries other inputs")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    preload()
    failed = 0
    for name in arguments.target or TARGETS:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-")).resolve()
        with TARGETS[name](folder) as target:
            result = fuzz(target, arguments.minutes, arguments.seed)
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{name}: {result}", flush=True)
        failed += len(result["failures"])
        if arguments.save:
            stored = read_json(RESULTS) if RESULTS.exists() else {}
            write_json(RESULTS, stored | {name: result | {"date": time.strftime("%Y-%m-%d")}})
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
