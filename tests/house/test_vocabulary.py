"""Retired words stay out of source, docs and output: the glossary has one word for each thing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = ("src", "docs", "tools", "recipes", "README.md", "CONTRIBUTING.md")
EXEMPT = {"docs/glossary.md"}  # which lists earlier words
RETIRED = {
    r"aloud": "transcription",
    r"mend(s|ed|ing)?": "fix",
    r"fore(see|sees|seen|saw)": "estimate",
    r"crew": "worker processes",
    r"settled?": "resolve",
    r"aids": "objective inputs",
    r"(be|is|are|stands?|kept|learned|scored) apart": "separately",
    r"rehears\w+": "profile",
    r"held to the (JSON )?schema": "constrained",
    r"taken for what": "confusion matrix",
    r"(on|of) a processor|processor (seconds?|minutes?|hours?)": "CPU",
    r"floors?": "baseline",
    r"OpenModel|open_model|FeatureMemory|Stepper": "LoadedModel, load_model, VisionFeatureCache, …",
}
ALLOWED = re.compile(
    r"math\.floor|np\.floor|\.floor\(|[Ff]loor}?\"|, floor|floor = |Ground Floor|first floor|apartment"
)


def test_retired_words_are_gone() -> None:
    words = re.compile(rf"\b(?:{'|'.join(RETIRED)})\b")
    listed = subprocess.run(["git", "ls-files", *PLACES], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = []
    for name in listed.stdout.splitlines():
        if name in EXEMPT or not name.endswith((".py", ".md", ".html", ".css", ".yaml")):
            continue
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if (match := words.search(line)) and not ALLOWED.search(line):
                found.append(f"{name}:{number}: {match[0]}: {line.strip()[:80]}")
    assert not found, f"{len(found)} retired words, see docs/glossary.md:\n" + "\n".join(found[:40])


def test_no_figure_comes_from_a_script_that_is_not_kept() -> None:
    """A figure in a page is produced by a command of the repository, or it is not there."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    unkept = re.compile(r"outside (the|this) repository|not part of\s+the repository", re.I)
    texts = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in listed.stdout.splitlines()}
    assert [name for name, text in texts.items() if unkept.search(" ".join(text.split()))] == []
