"""Bad files of run folders, rows of predictions, and manifests of new files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from reliability.case import Case
from reliability.mutations import WHOLE_DOCUMENTS, lines

RUN, REPORT = ("run", "r.yaml"), ("report", "runs/g")
PREDICT = ("predict", "runs/g", "d/images/0.png", "--out", "o.jsonl")
NEEDS = ("r.yaml", "d", "model", "runs")
RECORDED = tuple(item for item in WHOLE_DOCUMENTS if item[0] in ("null", "list", "object"))
UNRECORDED = tuple(item for item in WHOLE_DOCUMENTS if item[0] in ("list", "not UTF-8"))
RESULTS = ("report.html", "scores.json", "training.json", "adapter", "predictions.jsonl")


def run_files(workspace: Path) -> Iterator[Case]:
    """Files of a run of another shape, whose checksums say so, or agree since something else wrote them."""
    run = workspace / "runs" / "g"
    files = [file for file in sorted(run.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    for file in files:
        name = file.relative_to(run).as_posix()
        if name.startswith("tensorboard") or name.endswith(".html"):
            continue
        work = PREDICT if name.startswith("adapter") else RUN if "checkpoints" in name else REPORT
        for what, content in UNRECORDED:
            path = {f"runs/g/{name}": content}
            yield Case(f"{name} is {what}", work, path, NEEDS, arrange=_unfinish if work == RUN else None)
        for what, content in RECORDED:
            path = {f"runs/g/{name}": content}
            if name != "manifest.json":
                yield Case(f"{name} is {what}, recorded", work, path, NEEDS, arrange=partial(_recorded, name=name))
        if file.suffix == ".jsonl":
            for what, text in lines(file.read_text(), name, 4):
                path = {f"runs/g/{name}": text.encode("utf-8", "replace")}
                yield Case(f"{name} {what}, recorded", RUN, path, NEEDS, arrange=partial(_recorded, name=name))
        yield Case(f"without {name}", work, {}, NEEDS, arrange=partial(_without, name=name))
        yield Case(f"{name} is a folder", work, {}, NEEDS, arrange=partial(_folder, name=name))
    yield Case("an unfinished run", REPORT, {}, NEEDS, arrange=_unfinish)
    yield Case("an owner of another shape", RUN, {"runs/g/.owner.json": b"[]"}, NEEDS)
    yield Case("a lock that is a folder", RUN, {}, NEEDS, arrange=partial(_folder, name=".lock"))
    yield Case("features that are a file", RUN, {"runs/g/features": b"x"}, NEEDS, arrange=_unfinish)


def _recorded(folder: Path, name: str) -> None:
    """Make the file the recorded one; of a file that follows from others, take what follows away."""
    from mllm_tailor.core.manifest import record

    run = folder / "runs" / "g"
    if "checkpoints" in name or name == "log.jsonl" or name.startswith("cost"):
        _unfinish(folder)
    if name.startswith("predictions") or name in ("held_out.jsonl", "samples.jsonl", "data.json", "training.json"):
        for result in ("report.html", "scores.json"):
            (run / result).unlink(missing_ok=True)
    if (run / name).exists():
        record(run, run / name)


def _unfinish(folder: Path) -> None:
    """As after a kill before the end of training."""
    run = folder / "runs" / "g"
    for name in (*RESULTS, *(f"predictions/{file.name}" for file in (run / "predictions").glob("tuned_*"))):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)


def _without(folder: Path, name: str) -> None:
    (folder / "runs" / "g" / name).unlink()


def _folder(folder: Path, name: str) -> None:
    path = folder / "runs" / "g" / name
    path.unlink(missing_ok=True)
    path.mkdir()


def predictions(workspace: Path) -> Iterator[Case]:
    """Rows of predictions and labels of another origin, for `tailor score`."""
    labels = "".join(
        json.dumps({"id": f"s{n}", "fields": {"total": f"{n}.50", "lines": [{"a": n}]}}) + "\n" for n in range(4)
    )
    rows = "".join(
        json.dumps({"id": f"s{n}", "fields": {"total": f"{n}.5"}, "confidence": {"total": 0.5}}) + "\n"
        for n in range(4)
    )
    score = ("score", "l.jsonl", "p.jsonl")
    for what, text in lines(rows, "predictions", 30):
        yield Case(f"predictions {what}", score, _pair(labels, text))
    for what, text in lines(labels, "labels", 30):
        yield Case(f"labels {what}", score, _pair(text, rows))
    for what, content in WHOLE_DOCUMENTS:
        yield Case(f"predictions {what}", score, {"l.jsonl": labels.encode(), "p.jsonl": content})
        yield Case(f"labels {what}", score, {"l.jsonl": content, "p.jsonl": rows.encode()})
        yield Case(f"state {what}", PREDICT, {".o.jsonl.state.json": content, "o.jsonl": rows.encode()}, NEEDS)
    table = "id,total\ns0,1\ns1,2\n"
    for what, text in lines(table, "table", 12):
        yield Case(f"a table {what}", ("score", "l.csv", "p.csv"), {"l.csv": table.encode(), "p.csv": text.encode()})
    for word in ("x", "=", "total=", "=amount", "total=x", "total=amount=x", "[red]=amount"):
        yield Case(f"kind {word}", (*score, "--kind", word), _pair(labels, rows))
    for word in ("x", "", "[red]", "exact\0"):
        yield Case(f"metric {word!r}", (*score, "--metric", word), _pair(labels, rows))
    yield Case("a group of nobody", (*score, "--group-by", "x"), _pair(labels, rows))


def _pair(labels: str, rows: str) -> dict[str, bytes]:
    return {"l.jsonl": labels.encode("utf-8", "replace"), "p.jsonl": rows.encode("utf-8", "replace")}


def manifests(workspace: Path) -> Iterator[Case]:
    """Manifests for `tailor predict`."""
    row = {"image": "d/images/0.png", "question": "Total?", "id": "a", "system": "s", "options": ["x", "y"]}
    chat = {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "d/images/0.png"}, {"type": "text", "text": "?"}]}
        ]
    }
    turns = {"image": "d/images/0.png", "question": "q", "history": [["a", "b"]]}
    text = "".join(json.dumps(item) + "\n" for item in (row, chat, turns))
    work = ("predict", "runs/g", "m.jsonl", "--out", "o.jsonl")
    for what, changed in lines(text, "manifest", 45):
        yield Case(what, work, {"m.jsonl": changed.encode("utf-8", "replace")}, NEEDS)
    for what, content in WHOLE_DOCUMENTS:
        yield Case(what, work, {"m.jsonl": content}, NEEDS)
    yield Case("half a character", work, {"m.jsonl": b'{"image": "d/images/0.png", "id": "\\ud800"}\n'}, NEEDS)
    yield Case("a manifest of itself", work, {"m.jsonl": b'{"image": "m.jsonl"}\n'}, NEEDS)
    yield Case("a folder of pipes", ("predict", "runs/g", "d", "--out", "o.jsonl"), {}, NEEDS, arrange=_pipes)


def _pipes(folder: Path) -> None:
    import os

    os.mkfifo(folder / "d" / "p.png")
    (folder / "d" / "l.png").symlink_to("/etc/passwd")
