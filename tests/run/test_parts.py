"""Predictions in parts: nothing lost, nothing twice, whatever changed or died between two calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation import read_inputs
from mllm_tailor.launch.ray_predict import Outcome, _Pool
from mllm_tailor.run.parts import KeyedSample, begin, in_blocks, keep_present, predict_part, with_key


def picture(file: Path, shade: int) -> None:
    Image.new("L", (8, 8), shade).save(file)


def reply(samples: Sequence[Sample], on_done: Any) -> list[Prediction]:
    """A stand-in for the engine; the file `bad` cannot be read."""
    made = [Prediction(sample.id, "text", {}, problem="bad" if sample.id == "bad" else None) for sample in samples]
    for prediction in reversed(made):  # in any order
        on_done(prediction)
    return made


def call(out: Path, *paths: Path, block: int = 2) -> list[str]:
    """Reads what is missing, as a call does; returns the ids that were read."""
    keyed = [with_key(sample) for sample in read_inputs(paths)]
    kept = keep_present(out, keyed)
    missing = [item for item in keyed if item.name not in kept]
    for part in in_blocks(missing, block):
        predict_part(out, part, reply)
    return [item.sample.id for item in missing]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted(out.glob("part-*.jsonl")) for line in part.read_text().splitlines()]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        picture(folder / f"{number}.png", number)
    picture(folder / "sub" / "0.png", 0)  # the same bytes and the same stem as another one
    return folder


def test_a_second_call_reads_what_is_missing_changed_or_had_a_problem(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out, "model")
    assert call(out, scans) == ["0", "1", "2", "3", "4", "0.png"]
    assert call(out, scans) == []
    sorted(out.glob("part-*"))[0].unlink()
    assert len(call(out, scans)) == 2
    picture(scans / "3.png", 200)
    (scans / "bad.png").write_bytes(b"no picture")
    assert call(out, scans) == ["3", "bad"]
    assert call(out, scans) == ["bad"]  # tried again
    made = rows(out)
    assert sorted(row["file"] for row in made) == sorted(
        ["0.png", "1.png", "2.png", "3.png", "4.png", "bad.png", "sub/0.png"]
    )
    assert len({(row["sha256"], row["file"]) for row in made}) == 7
    same = {row["file"]: row["sha256"] for row in made}
    assert same["0.png"] == same["sub/0.png"] != same["1.png"]


def test_a_block_read_twice_is_one_file(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out, "model")
    block = tuple(with_key(sample) for sample in read_inputs([scans]))
    for _ in range(2):
        assert predict_part(out, block, reply) == []
    assert len(rows(out)) == len(block)


def test_rows_of_other_files_stay(scans: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out", tmp_path / "more"
    more.mkdir()
    picture(more / "new.png", 9)
    begin(out, "model")
    call(out, scans)
    assert call(out, more) == ["new"]
    assert len(rows(out)) == 7


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    begin(tmp_path / "out", "model")
    begin(tmp_path / "out", "model")
    with pytest.raises(RunError, match="another model or other settings"):
        begin(tmp_path / "out", "other")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    with pytest.raises(RunError, match="no predictions in parts"):
        begin(tmp_path / "notes", "model")
    with pytest.raises(RunError, match="parts go into a folder"):
        begin(tmp_path / "notes" / "a.txt", "model")
    (tmp_path / "out" / "part-x.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match=r"part-x\.jsonl.* remove this file"):
        keep_present(tmp_path / "out", [])


class FakeRay:
    """Actors that die at certain files, one call at a time."""

    class exceptions:
        class RayActorError(Exception):
            pass

    def __init__(self, out: Path, deadly: dict[str, int]) -> None:
        self.out, self.deadly, self.alive, self.started = out, deadly, 0, 0

    def make(self) -> Any:
        self.started += 1
        return FakeActor(self)

    def wait(self, futures: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return futures[:num_returns], futures[num_returns:]

    def get(self, future: Any) -> Any:
        return future()

    def kill(self, actor: Any) -> None:
        actor.killed = True

    def read(self, block: Any) -> Any:
        for item in block:
            if self.deadly.get(item.sample.id, 0):
                self.deadly[item.sample.id] -= 1
                raise self.exceptions.RayActorError(f"died at {item.sample.id}")
        return predict_part(self.out, block, reply), None


class FakeActor:
    def __init__(self, ray: FakeRay) -> None:
        self.ready, self.read, self.killed = _Remote(lambda: None), _Remote(ray.read), False


class _Remote:
    def __init__(self, function: Any) -> None:
        self.function = function

    def remote(self, *arguments: Any) -> Any:
        return lambda: self.function(*arguments)


class Shown:
    def advance(self, count: int) -> None:
        pass


@pytest.mark.parametrize(("deaths", "lost"), [(1, False), (3, False), (9, True)])
def test_blocks_of_dead_workers_are_read_by_others(scans: Path, tmp_path: Path, deaths: int, lost: bool) -> None:
    out = tmp_path / "out"
    begin(out, "model")
    keyed: list[KeyedSample] = [with_key(sample) for sample in read_inputs([scans])]
    ray, outcome = FakeRay(out, {"2": deaths}), Outcome(0)
    pool = _Pool(ray, ray.make, outcome, Shown())
    if lost:
        with pytest.raises(RunError, match=r"ended.*: 2\.png — all others have their rows"):
            pool.run(in_blocks(keyed, 4), 2)
    else:
        pool.run(in_blocks(keyed, 4), 2)
    files = [row["file"] for row in rows(out)]
    assert len(files) == len(set(files)) == outcome.made == 6 - lost
    assert ray.started == 2 + min(deaths, 4)
