"""Every command and every snippet of both READMEs is run; the two say the same."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from mllm_tailor.cli.app import run_command
from mllm_tailor.commands import demo
from mllm_tailor.recipe import make_recipe
from mllm_tailor.synthetic.folder import draw_folder

REPOSITORY = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh-CN.md")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Small enough for every change; the commands are the README's, with fewer samples and steps.
QUICK = [
    "model.tiles={min: 1, max: 1}",
    "train.epochs=1",
    "train.max_minutes=0.2",
    "data.limit=4",
    "data.limit_held_out=2",
    "data.dev=0",
    "predict.max_new_tokens=16",
]


def blocks(readme: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    return [body for name, body in FENCE.findall(text) if name == language]


def commands(readme: str) -> list[str]:
    """Shell commands without their comments."""
    lines = [line.split(" #")[0].strip() for block in blocks(readme, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


def test_both_readmes_say_the_same() -> None:
    english, chinese = READMES
    assert commands(english) == commands(chinese)
    assert blocks(english, "python") == blocks(chinese, "python")
    strip = re.compile(r"#.*")
    assert [strip.sub("", block) for block in blocks(english, "yaml")] == [
        strip.sub("", block) for block in blocks(chinese, "yaml")
    ]
    headings = [len(re.findall(r"^#+ ", (REPOSITORY / readme).read_text(), re.MULTILINE)) for readme in READMES]
    assert headings[0] == headings[1]


@pytest.mark.parametrize("readme", READMES)
def test_two_commands_stand_in_the_first_screen(readme: str) -> None:
    head = "\n".join((REPOSITORY / readme).read_text(encoding="utf-8").splitlines()[:25])
    assert "make demo" in head and "make test" in head and "before-after.png" in head


@pytest.mark.parametrize("readme", READMES)
def test_links_and_pictures_exist(readme: str) -> None:
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (REPOSITORY / target).exists(), f"{readme} links to {target}"


@pytest.mark.parametrize("readme", READMES)
def test_recipes_are_valid(readme: str) -> None:
    for block in blocks(readme, "yaml"):
        make_recipe(yaml.safe_load(block))


@pytest.mark.parametrize("readme", READMES)
def test_extras_are_those_of_the_package(readme: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"dev"}
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == extras
    for named in re.findall(r"mllm-tailor\[([\w,]+)\]", text):
        assert set(named.split(",")) <= extras


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the README has it after `make demo`: labelled FOLDER, new scans, runs."""
    home = tmp_path_factory.mktemp("home")
    draw_folder(home / "FOLDER", 12, 4, seed=3)
    scans = home / "new-scans"
    scans.mkdir()
    pictures = sorted((home / "FOLDER" / "images").glob("*.jpg"))
    shutil.copy(pictures[0], scans / "one.jpg")
    shutil.copy(pictures[1], home / "receipt.jpg")
    return home


@pytest.fixture(scope="module")
def used(home: Path) -> Path:
    """The same folder after every command of the README has run in it, in order."""
    logger = logging.getLogger("mllm_tailor")
    handlers = list(logger.handlers)
    made = {"make demo": ["tailor", "demo", *QUICK]}  # `make` only sets up .venv and calls this
    for line in commands("README.md"):
        words = made.get(line, shlex.split(line))
        if words[:2] == ["pip", "install"]:
            continue  # see test_extras_are_those_of_the_package
        if words[0] in ("make", "source"):
            target = (REPOSITORY / "Makefile").read_text()
            assert words[0] == "source" or f"\n{words[1]}:" in target
            continue
        if words[:2] == ["tailor", "compare"]:
            shutil.copytree(home / "runs" / "receipts", home / "runs" / "other")
        assert words[0] == "tailor", line
        with contextlib.chdir(home), pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, "TRAIN", 12)  # drawing 160 receipts takes longer than all that follows
            patch.setattr(demo, "HELD_OUT", 4)
            assert run_command(words[1:]) == 0, line  # in this process, which has imported everything already
        if words[:2] == ["tailor", "init"]:
            make_quick(home / "receipts.yaml")
    logger.handlers[:] = handlers  # later than `library_output` of the test that asked for this
    return home


def make_quick(recipe: Path) -> None:
    """Settings that keep every later command short, written into the recipe as a reader would."""
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for setting in QUICK:
        path, _, value = setting.partition("=")
        section, _, name = path.partition(".")
        if isinstance(values.get(section), str):  # the short form of `model`
            values[section] = {"path": values[section]}
        values.setdefault(section, {})[name] = yaml.safe_load(value)
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.mark.slow
def test_every_command_runs(used: Path) -> None:
    assert (used / "runs/demo/report.html").is_file() and (used / "runs/receipts/report.html").is_file()
    assert len((used / "predictions.jsonl").read_text().splitlines()) == 1
    assert (used / "merged-model" / "config.json").is_file()


@pytest.mark.slow
def test_python_snippet_runs(used: Path) -> None:
    for block in blocks("README.md", "python"):
        words = [sys.executable, "-c", block]
        done = subprocess.run(words, cwd=used, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
