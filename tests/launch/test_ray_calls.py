"""What this package does with Ray, on a stand-in that runs tasks and actors in this process.

Ray itself is no part of the test environment: benchmarks/ray_cluster.py and benchmarks/ray_predict.py run it. Workers
that die: tests/run/test_parts.py.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from PIL import Image

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.generation import read_inputs
from mllm_tailor.launch import ray_predict
from mllm_tailor.launch.ray_map import ray_mapper


class Future:
    """What a call has returned."""

    def __init__(self, value):
        self.value = value


class FakeRay:
    """The few functions of Ray that are called."""

    def __init__(self):
        self.read, self.killed = [], 0  # names of the files of each block, and actors
        self.exceptions = SimpleNamespace(RayActorError=OSError, RayError=OSError)

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 2.0}

    def put(self, value):
        return value

    def remote(self, target):
        def call(*arguments):
            return self._actor(target(*arguments)) if isinstance(target, type) else Future(target(*arguments))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=call))

    def _actor(self, instance):
        def read(block):
            self.read.append([item.name[1] for item in block])
            return Future(instance.read(block))

        ready = SimpleNamespace(remote=lambda: Future(None))
        return SimpleNamespace(ready=ready, read=SimpleNamespace(remote=read))

    def wait(self, futures, num_returns):
        return futures[:num_returns], futures[num_returns:]

    def get(self, future):
        return future.value

    def kill(self, actor):
        self.killed += 1


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


class Predictor(SimpleNamespace):
    """A model that reads the name of a file."""

    def key(self):
        return "key"

    @contextmanager
    def opened(self):
        def predict(samples, keep):
            for sample in samples:
                keep(Prediction(sample.id, sample.media[0].path.name))

        yield predict


@pytest.fixture
def call(ray, tmp_path, monkeypatch):
    """Reads ten files in blocks of three with two workers; returns the outcome and the number of rows by file."""
    monkeypatch.setattr(ray_predict, "BLOCK", 3)
    (tmp_path / "scans").mkdir()
    for number in range(10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "scans" / f"{number}.png")
    run = SimpleNamespace(task=SimpleNamespace(name="extract"), model=SimpleNamespace(path="tiny"))

    def call():
        predictor = Predictor(run=run, tuned=None, trained_in=None)
        outcome = ray_predict.predict_on_ray(tmp_path / "out", predictor, read_inputs([tmp_path / "scans"]), 2)
        lines = [line for part in (tmp_path / "out").glob("part-*") for line in part.read_text().splitlines()]
        return outcome.kept, outcome.made, Counter(json.loads(line)["file"] for line in lines)

    return call


def test_each_file_has_one_row_and_a_second_call_reads_what_is_missing(ray, call, tmp_path):
    each_once = Counter(f"{number}.png" for number in range(10))
    assert call() == (0, 10, each_once) and ray.killed == 2
    part = min((tmp_path / "out").glob("part-*"))
    lost = [json.loads(line)["file"] for line in part.read_text().splitlines()]
    part.unlink()
    ray.read.clear()
    assert call() == (10 - len(lost), len(lost), each_once) and ray.read == [sorted(lost)]


def test_a_model_that_cannot_be_opened_ends_the_call_with_its_message(call, monkeypatch):
    def refuse(predictor):
        raise RunError("adapter: damaged")

    monkeypatch.setattr(ray_predict, "_bring_model", refuse)
    with pytest.raises(RunError, match="adapter: damaged"):
        call()


def half(number):
    if number % 2:
        raise RunError(f"{number} is odd")
    return number // 2


def test_tasks_keep_their_order_and_a_mistake_of_the_user_its_message(ray):
    mapped = ray_mapper()(half, [4, 2, 3, 8])
    assert [next(mapped), next(mapped)] == [2, 1]
    with pytest.raises(RunError, match="3 is odd"):
        next(mapped)


def test_what_tasks_print_leaves_standard_output_to_the_results(ray, capsys):
    assert list(ray_mapper()(print, ["a table of one training"])) == [None]
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "a table of one training\n"


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"--on ray: needs ray — pip install 'mllm-tailor\[ray\]'"):
        ray_mapper()
