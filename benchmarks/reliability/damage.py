"""Bytes flipped in every region of every saved file, and every file lost once."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reliability.corpus_decisions import invented_calibration
from reliability.forked import Ended, Limits, run
from reliability.job import HANG, JOBS
from reliability.kills import Tally
from reliability.outcome import differences, outcome
from reliability.workspace import PLACE, copy_workspace, write_recipe

from mllm_tailor.core.summed_rows import keep_lines

RUN_PARTS = ("d", "model", "r.yaml", "runs")
OUTPUT = ("o.jsonl", "state.json")
RESULTS = ("report.html", "scores.json", "training.json", "adapter", "predictions.jsonl")


@dataclass(frozen=True)
class Place:
    """Saved files, and a command that reads them."""

    name: str
    words: tuple[str, ...]
    files: str  # the folder, or one file, whose bytes are flipped
    result: str  # what the command writes, compared with what it wrote from whole files
    regions: int = 3  # of every file; fewer where the command works long after each
    also: tuple[str, ...] = ()  # parts of the workspace beside the data, the model and the run
    arrange: Callable[[Path], object] | None = None  # of the copy, before the damage


def _unfinish(folder: Path, name: str = "g") -> None:
    """As after a kill before the end of training."""
    path = folder / "runs" / name
    for name in (*RESULTS, *(f"predictions/{file.name}" for file in (path / "predictions").glob("tuned_*"))):
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink(missing_ok=True)


def _half_predicted(folder: Path) -> None:
    """As after a kill of a prediction."""
    lines = (folder / "o.jsonl").read_bytes().splitlines(keepends=True)
    keep_lines(folder / "o.jsonl", lines[: len(lines) // 2])
    shutil.copy2(folder / "state.json", folder / ".o.jsonl.state.json")


def _calibrated(folder: Path) -> None:
    """The run gets a calibration, fitted on invented values."""
    _well(run(lambda: _write_calibration(folder / "runs" / "g"), folder))


def _write_calibration(path: Path) -> None:
    from mllm_tailor.core.manifest import record
    from mllm_tailor.run.calibrate import write_calibration
    from mllm_tailor.run.run_dir import RunFolder

    folder = RunFolder(path)
    write_calibration(folder, invented_calibration())
    record(path, folder.calibration)


PREDICT = ("predict", "runs/g", "d/images", "--out", "o.jsonl")
MERGED = ("predict", "--model", "merged", "--recipe", "r.yaml", "d/images/0.png", "--out", "m.jsonl")
REVIEW = "review"
EXPORT = ("review", "runs/g", "--db", f"{REVIEW}/corrections.db", "--export", "out/labels.jsonl")
STAGED = ("predict", "staged/g", "d/images/0.png", "--out", "s.jsonl")
PLACES = (
    Place("a finished run, `tailor report`", ("report", "runs/g"), "runs/g", "runs/g", 8),
    Place("its adapter, `tailor predict`", PREDICT, "runs/g/adapter", "o.jsonl"),
    Place("its calibration, `tailor predict`", PREDICT, "runs/g/calibration.json", "o.jsonl", 12, arrange=_calibrated),
    Place(
        "cached features, `tailor run`",
        ("run", "f.yaml"),
        "runs/f/features",
        "runs/f",
        2,
        ("f.yaml",),
        arrange=lambda folder: _unfinish(folder, "f"),
    ),
    Place("the database of a review, its export", EXPORT, f"{REVIEW}/corrections.db", "out", 60, (REVIEW,)),
    Place("documents of a review, its export", EXPORT, f"{REVIEW}/documents", "out", 1, (REVIEW,)),
    Place("an unfinished run, `tailor run`", ("run", "r.yaml"), "runs/g", "runs/g", 1, arrange=_unfinish),
    Place("a model exported by `tailor merge`, `tailor predict`", MERGED, "merged", "m.jsonl", also=("merged",)),
    Place(
        "the merged model between stages, `tailor predict`", STAGED, "staged/g/1-a/model", "s.jsonl", also=("staged",)
    ),
    Place(
        "an interrupted prediction, `tailor predict`",
        PREDICT,
        "o.jsonl",
        "o.jsonl",
        also=OUTPUT,
        arrange=_half_predicted,
    ),
    Place(
        "the sums of its rows, `tailor predict`",
        PREDICT,
        ".o.jsonl.sums",
        "o.jsonl",
        also=OUTPUT,
        arrange=_half_predicted,
    ),
    Place(
        "its state, `tailor predict`", PREDICT, ".o.jsonl.state.json", "o.jsonl", also=OUTPUT, arrange=_half_predicted
    ),
)


def prepare_saved(workspace: Path) -> None:
    """Everything that is saved: a merged model, a run with stages, and predictions with their state."""
    _well(run(["merge", "runs/g", "merged", "--samples", "0"], workspace))
    write_recipe(workspace / "s.yaml", output="staged", **JOBS["stages"].recipe)
    _well(run(["run", "s.yaml"], workspace))
    _well(run(PREDICT, workspace, before=_keep_state))
    write_recipe(workspace / "f.yaml", name="f")
    _well(run(("run", "f.yaml"), workspace, before=_keep_features))
    _well(run(lambda: _review(workspace), workspace))


def _review(workspace: Path) -> None:
    """A review in which every document was corrected and finished."""
    from mllm_tailor.data.reviews.desk import Change, Desk, Reviewer
    from mllm_tailor.data.reviews.store import ReviewStore
    from mllm_tailor.run.review import add_files

    database = workspace / REVIEW / "corrections.db"
    add_files(workspace / "runs" / "g", [workspace / "d" / "images"], database, 0.0)
    desk, reviewer = Desk(ReviewStore(database)), Reviewer("tab", "Anne")
    while (entry := desk.take(reviewer)) is not None:
        for number in range(3):
            change = Change(entry.document.sha256, "correct", entry.last, "total", f"{number}.50")
            entry = desk.change(reviewer, change)
        desk.change(reviewer, Change(entry.document.sha256, "finish", entry.last))


def _keep_state() -> None:
    """Let the prediction leave a copy of its state, which it removes at its end."""
    from mllm_tailor.run import new_files

    write = new_files.write_json

    def write_both(path: Path, value: object) -> None:
        write(path, value)
        write(path.with_name("state.json"), value)

    new_files.write_json = write_both


def _keep_features() -> None:
    """Let a run keep what its frozen vision side makes of images, as runs of a comparison do."""
    from mllm_tailor.run.run_dir import RunFolder

    def features(self: RunFolder) -> Path:
        (self.path / "features").mkdir(exist_ok=True)
        return self.path / "features"

    RunFolder.features = property(features)  # type: ignore[assignment, method-assign]


def _well(ended: Ended) -> None:
    if ended.status != 0:
        raise SystemExit(ended.output)


def flip_bytes(workspace: Path, folder: Path, place: Place, regions: int, seed: int = 0) -> Tally:
    """Flip one byte in each of `regions` regions of every file, and in each tensor, and run the command on each."""
    tally = Tally()
    trial = _Trial(workspace, folder, place)
    for name, content in trial.contents.items():
        for at, bit in _spots(name, content, regions, seed):
            changed = content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
            trial.judge(tally, name, f"byte {at:,} of {name}", lambda path, new=changed: _replace(path, new))  # type: ignore[misc]
    return tally


def lose_files(workspace: Path, folder: Path, place: Place) -> Tally:
    """Remove every file once and run the command."""
    tally, trial = Tally(), _Trial(workspace, folder, place)
    for name in trial.contents:
        trial.judge(tally, name, f"{name} removed", Path.unlink)
    return tally


def _replace(path: Path, content: bytes) -> None:
    path.unlink()  # it may be a link to the file of the workspace
    path.write_bytes(content)


class _Trial:
    """Copies of a place, each damaged once."""

    def __init__(self, workspace: Path, folder: Path, place: Place) -> None:
        self.workspace, self.folder, self.place = workspace, folder, place
        self.parts = (*RUN_PARTS, *place.also)
        self.copy = folder / PLACE
        self._copy()
        root = self.copy / place.files
        files = [root] if root.is_file() else [file for file in sorted(root.rglob("*")) if file.is_file()]
        self.contents = {
            file.relative_to(self.copy).as_posix(): content for file in files if (content := file.read_bytes())
        }
        _well(run(place.words, self.copy))
        self.wanted = _result(self.copy / place.result)

    def _copy(self) -> None:
        shutil.rmtree(self.copy, ignore_errors=True)
        copy_workspace(self.workspace, self.copy, *self.parts)
        if self.place.arrange is not None:
            self.place.arrange(self.copy)

    def judge(self, tally: Tally, name: str, what: str, damage: Callable[[Path], object]) -> None:
        """Damage a fresh copy, run the command, and see that nothing wrong was used in silence."""
        place = self.copy
        self._copy()
        damage(place / name)
        ended = run(self.place.words, place, limits=Limits(seconds=HANG))
        if ended.crashed:
            tally.fail(f"{what}: {'no end' if ended.timed_out else ended.last_line}")
        elif ended.status != 0:
            told = Path(name).name in ended.output or Path(name).parent.name in ended.output
            tally.count("refused by name") if told else tally.fail(f"{what}: not named: {ended.error}")
        elif different := differences(self.wanted, _result(place / self.place.result)):
            told = Path(name).name in ended.output or Path(name).parent.name in ended.output
            harmless = all(item == name.removeprefix(f"{self.place.result}/") for item in different)
            if harmless:
                tally.count("not read by this command, left as it is")
            else:
                tally.fail(f"{what}: used in silence: {', '.join(different[:4])}{' (named)' if told else ''}")
        else:
            named = Path(name).name in ended.output or Path(name).parent.name in ended.output
            tally.count("named and made again" if named else "made again or not needed, same results")


def _result(path: Path) -> dict[str, object]:
    """What came of a command; cached features are made again as needed, and what is made from them is compared."""
    if path.is_dir():
        return {name: value for name, value in outcome(path).items() if not name.startswith("features/")}
    return {path.name: outcome(path.parent).get(path.name)}


def _spots(name: str, content: bytes, regions: int, seed: int) -> Iterator[tuple[int, int]]:
    """`(byte, bit)` for each region of a file: equal parts, and of weights the header and every tensor."""
    chance, size = random.Random(f"{name} {seed}"), len(content)
    count = min(regions, size)
    edges = [(size * part // count, size * (part + 1) // count) for part in range(count)]
    if name.endswith(".safetensors"):
        (length,) = struct.unpack("<Q", content[:8])
        head = json.loads(content[8 : 8 + length])
        offsets = [entry["data_offsets"] for key, entry in head.items() if key != "__metadata__"]
        tensors = [(8 + length + start, 8 + length + end) for start, end in offsets if end > start]
        edges = [(0, 8), (8, 8 + length), *tensors[:: max(1, len(tensors) // regions)]]
    for start, end in edges:
        yield chance.randrange(start, end), 1 << chance.randrange(8)
