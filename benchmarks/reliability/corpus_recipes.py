"""Bad recipes, overrides and command lines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml
from reliability.case import Case
from reliability.mutations import WHOLE_DOCUMENTS, documents
from reliability.workspace import recipe

from mllm_tailor.recipe import dump_recipe, make_recipe

CHECK = ("check", "r.yaml", "--no-decode")
JOB = ("d", "model")

TEXTS: tuple[tuple[str, str], ...] = (
    ("a list as key", "seed: {[a]: b}"),
    ("a mapping as key", "? {a: b}\n: c"),
    ("no such day", "seed: 2024-02-31"),
    ("no such hour", "seed: 2024-02-01 25:61:61"),
    ("!!int abc", "seed: !!int abc"),
    ("!!bool abc", "seed: !!bool abc"),
    ("!!float abc", "seed: !!float abc"),
    ("!!binary abc", "seed: !!binary '*'"),
    ("!!timestamp abc", "seed: !!timestamp abc"),
    ("!!null abc", "seed: !!null abc"),
    ("!!set", "score: !!set {a, b}"),
    ("!!omap", "score: !!omap [a: 1, b: 2]"),
    ("!!pairs", "score: !!pairs [a, b]"),
    ("a tag of nobody", "seed: !thing {a: 1}"),
    ("an alias of nothing", "seed: *nothing"),
    ("a list in itself", "score: &a [*a]"),
    ("a mapping in itself", "task: &a {b: *a}"),
    ("a merge of a number", "train: {<<: 7}"),
    ("a merge of itself", "train: &t {<<: *t}"),
    ("two documents", "seed: 1\n---\nseed: 2"),
    ("a directive", "%YAML 9.9\n---\nseed: 1"),
    ("a tabulator", "train:\n\tsteps: 1"),
    ("an unknown escape", 'name: "\\q"'),
    ("half a character", 'name: "\\ud800"'),
    ("a zero byte in a name", 'name: "a\\0b"'),
    ("a line break in a name", 'name: "a\\nb"'),
    ("markup in a name", "name: '[red]x[/red]'"),
    ("escapes in a name", 'name: "\\e[2J\\e]0;x\\a"'),
    ("a path as name", "name: ../../x"),
    ("an absolute path as name", "name: /tmp"),
    ("a dot as name", "name: ."),
    ("no name", "name: ''"),
    ("a name of 5000 letters", f"name: {'x' * 5000}"),
    ("an output of 5000 letters", f"output: {'x' * 5000}"),
    ("a zero byte in the output", 'output: "a\\0b"'),
    ("nested lists", f"score: {'[' * 3000}{']' * 3000}"),
    ("nested mappings", f"task: {'{a: ' * 200}1{'}' * 200}"),
    ("a number of 5000 digits", f"seed: {'9' * 5000}"),
    ("a sexagesimal number", "seed: 190:20:30"),
    ("an infinite number", "seed: .inf"),
    ("no number", "seed: .nan"),
    ("a huge exponent", "train: {learning_rate: 1e999}"),
    ("a setting twice", "seed: 1\nseed: 2"),
    ("an absent device", "model: {path: model, device: 'cuda:99'}"),
    ("a device of nobody", "model: {path: model, device: '[red]'}"),
    ("an unknown method", "method: 'lora\\0'"),
    ("stages of nothing", "stages: []"),
    ("stages without names", "stages: [{}, {}]"),
    ("stages of one name", "stages: [{name: a}, {name: a}]"),
    ("a stage that is a path", "stages: [{name: ../a}, {name: b/c}]"),
    ("a thousand aliases", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]"),
    ("a device as data", "data: /dev/zero"),
    ("a process file as data", "data: /proc/self/mem"),
    ("the root as media folder", "data: {train: d, media_root: 5}"),
    ("a model that is a file", "model: r.yaml"),
    ("a model with a zero byte", 'model: "a\\0b"'),
    ("a model of 5000 letters", f"model: {'x' * 5000}"),
    ("a model that is no hub id", "model: 'a/b/c/d'"),
    ("a template as system text", "model: {path: model, system: '{{ 1/0 }}'}"),
    ("control tokens as system text", "model: {path: model, system: '<|im_end|>'}"),
    ("fields of one name", "task: {extract: {total: string, 'total ': string}}"),
    ("a field without a name", "task: {extract: {'': string}}"),
    ("a field with brackets", "task: {extract: {'[red]': string, 'a.b': amount}}"),
    ("a choice of nothing", "task: {extract: {total: {choices: []}}}"),
    ("a choice of itself", "task: {extract: {total: {type: choice, choices: [a, a]}}}"),
    ("more parts than there are", "method: {name: lora, parts: [eyes]}"),
    ("a rank above every layer", "method: {name: lora, rank: 100000}"),
    ("no steps", "train: {steps: 0}"),
    ("a batch of everything", "train: {batch_size: 1000000000000}"),
    ("a million processes", "train: {processes: 1000000}"),
    ("more tokens than there are", "predict: {max_new_tokens: 1000000000}"),
    ("more beams than tokens", "predict: {num_beams: 64, max_new_tokens: 32768, batch_size: 1000000}"),
    ("tiles beyond number", "model: {path: model, tiles: {max: 1000000000}}"),
    ("frames beyond number", "model: {path: model, frames: 1000000000}"),
    ("a tile of no size", "model: {path: model, tile_size: 0}"),
    ("a fraction above 1", "data: {train: d, held_out: {fraction: 7}}"),
    ("a column of nobody", "data: {train: d, held_out: {column: nothing, value: 3}}"),
    ("a group of nobody", "data: {train: d, held_out: {fraction: 0.3, group_by: nothing}}"),
    ("a layout that it is not", "data: {train: d, layout: coco}"),
    ("a source that is absent", "data: {train: d, sources: [{train: nowhere}]}"),
    ("itself as source", "data: {train: d, sources: [{train: d}]}"),
    ("a metric of nobody", "score: ['[bold]']"),
    ("a score of 1000 metrics", f"score: [{', '.join(['exact'] * 1000)}]"),
)


def _text(values: object) -> bytes:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode("utf-8", "replace")


def _merged(text: str) -> bytes:
    """The recipe with the lines of a text in the place of settings of the same name."""
    first = text.partition(":")[0]
    values = {key: value for key, value in recipe().items() if key != first}
    return _text(values) + text.encode("utf-8", "surrogatepass") + b"\n"


def recipes(workspace: Path) -> Iterator[Case]:
    """Recipes of odd YAML, and the good recipe with every setting exchanged or removed."""
    for name, text in TEXTS:
        yield Case(name, CHECK, {"r.yaml": _merged(text)}, JOB)
    for name, content in WHOLE_DOCUMENTS:
        yield Case(f"whole, {name}", CHECK, {"r.yaml": content}, JOB)
    saved = yaml.safe_load(dump_recipe(make_recipe(recipe())))
    for name, values in documents(saved, "recipe"):
        yield Case(f"saved, {name}", _resolve, {"r.yaml": _text(values)}, JOB)


def _resolve() -> None:
    """As far as a run goes before it reads data, which is where most settings are refused."""
    from mllm_tailor.core.errors import TailorError
    from mllm_tailor.core.failures import as_messages
    from mllm_tailor.recipe import read_recipe
    from mllm_tailor.run.execute import resolve_stages

    try:
        with as_messages():
            resolve_stages(read_recipe(Path("r.yaml")))
    except TailorError as error:
        print(f"Error: {error}")


def overrides(workspace: Path) -> Iterator[Case]:
    """Words after the recipe."""
    words = (
        "x", "=", "=1", "a.b.c=1", ".=1", "..=1", "train.=1", "train..steps=1", "train.steps", "train.steps=",
        "train.steps=[", "train.steps={", "train.steps=!!int x", "train.steps=1e999", "train.steps=-1", "train=1",
        "train=[1]", "model=[1]", "model.path=", "model.path.x=1", "stages.1.name=x", "stages=[{name: a}]", "task=1",
        "task.extract=[]", "score.1=x", "data=[]", "data.train.x=1", "name=", "name=..", "output=", "seed=1.5",
        "seed=99999999999999999999999", f"seed={'[' * 500}", "method.name=[red]", "model.device=cpu:9", "\udcff=1",
        "data.train=\udcff", "model.dtype=int8", "train.batch=2", "predict.batch_size=0",
    )  # fmt: skip
    for word in words:
        yield Case(repr(word)[:60], (*CHECK, word), needs=("r.yaml", *JOB))


def command_lines(workspace: Path) -> Iterator[Case]:
    """Commands with words that are no folder, file or option of theirs."""
    odd = ("nowhere", "/dev/null", "/dev/zero", "a\udcffb", "[red]x[/red]", "\x1b[2J", "x" * 5000, "d", "r.yaml", "")
    commands: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("init", ("init",)), ("report", ("report",)), ("check", ("check",)), ("run", ("run",)),
    )  # fmt: skip
    for name, words in commands:
        for number, word in enumerate(odd):
            if name == "init" and word == "d":
                continue
            yield Case(f"{name} {number}", (*words, word), needs=("r.yaml", *JOB))
    for number, word in enumerate(odd):
        yield Case(f"predict {number}", ("predict", word, "d/images/0.png"), needs=("r.yaml", *JOB))
        yield Case(f"score {number}", ("score", word, word), needs=("r.yaml", *JOB))
        yield Case(f"compare {number}", ("compare", word, word), needs=("r.yaml", *JOB))
        yield Case(f"convert {number}", ("convert", word, "out"), needs=("r.yaml", *JOB))
        yield Case(f"merge {number}", ("merge", word, "out"), needs=("r.yaml", *JOB))
    yield Case("out is a folder", ("init", "d", "--out", "d", "--force"), needs=JOB)
    yield Case("out is nowhere", ("init", "d", "--out", "/proc/nowhere/r.yaml"), needs=JOB)
    yield Case("no option", ("run", "r.yaml", "--thing"), needs=("r.yaml", *JOB))
    yield Case("no command", ("thing",))
    yield Case("a data folder that cannot be listed", CHECK, needs=("r.yaml", *JOB), arrange=_file_for_folder)
    yield Case("a recipe that is a pipe", CHECK, needs=JOB, arrange=partial(_pipe, name="r.yaml"))
    yield Case("a recipe that links to itself", CHECK, needs=JOB, arrange=partial(_loop, name="r.yaml"))


def _file_for_folder(folder: Path) -> None:

    shutil.rmtree(folder / "d" / "images")
    (folder / "d" / "images").write_text("")


def _pipe(folder: Path, name: str) -> None:

    os.mkfifo(folder / name)


def _loop(folder: Path, name: str) -> None:
    (folder / name).symlink_to(name)
