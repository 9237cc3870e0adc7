"""Writes the reference pages from the code they describe; a test keeps them in step. Run: make docs"""

from __future__ import annotations

from pathlib import Path

from methods_page import methods_page
from reliability_page import reliability_page
from words import settings_table

from mllm_tailor.recipe import Recipe, Settings
from mllm_tailor.recipe.read import model_in
from mllm_tailor.tasks import TASKS
from mllm_tailor.tasks.caption import CaptionSettings
from mllm_tailor.tasks.choose import ChooseSettings
from mllm_tailor.tasks.classify import ClassifySettings
from mllm_tailor.tasks.extract import FieldSpec
from mllm_tailor.tasks.ground import GroundSettings
from mllm_tailor.tasks.match import MatchSettings
from mllm_tailor.tasks.transcribe import TranscribeSettings

DOCS = Path(__file__).resolve().parents[2] / "docs"

HEAD = """# The recipe

One YAML file says everything about a tailoring job. This page is generated from the code (`make docs`).
Anything left out takes the default shown; an unknown word is refused with the nearest right one.

```yaml
name: receipts
model: embedded
data:
  train: path/to/folder
  held_out: {fraction: 0.1, group_by: company}
task:
  extract: {company: string, date: date, address: string, total: amount}
method: {name: qlora, rank: 128, alpha: 256, parts: [language]}
train: {epochs: 3, batch_size: 16, learning_rate: 5e-4}
score: [fuzzy, exact, f1]
```

Any setting is changed for one run on the command line: `tailor run recipe.yaml train.epochs=5 model.dtype=float32`.

## Stages

With `stages`, a recipe trains several times in order. Each stage has its own data, task, method and schedule where it
says so, and otherwise those of the common part:

```yaml
name: questions
data: {train: path/to/folder, held_out: {fraction: 0.1}}
method: {name: lora, rank: 32}
stages:
  - {name: captions, task: caption, train: {epochs: 1}}
  - {name: answers, task: answer, method: {name: full, parts: [language]}}
```

What a stage learned is folded into the model, and the next stage starts from that plain checkpoint
(`runs/questions/1-captions/model`). So any method may follow any other, and no later stage depends on how an
earlier one was trained. Two things follow: a stage on a 4-bit base packs the folded weights anew, and a method that
cannot be folded can only come last. Each stage is its own run folder; after each, the model is scored on the
held-out samples of every stage, so that what was gained and what was forgotten stand in one table. A sample may not be
trained on in one stage and held out in another. One stage's setting is changed by its name:
`tailor run recipe.yaml stages.answers.train.epochs=5`.

## Mixtures

`data.sources` mixes other samples into every epoch, each source with its own task and amount: general data against
forgetting, or several kinds of media of one domain. Only `data.train` is held out from and scored.

```yaml
data:
  train: path/to/clips
  sources:
    - {train: path/to/pictures, task: caption, weight: 0.5}          # one picture for every two clips
    - {name: general, train: path/to/chats, task: answer, limit: 2000, repeat: 1}
train: {one_modality: true}                                          # pictures in one step, clips in the next
method:
  name: lora
  parts: {vision: {rank: 8, learning_rate: 2.0e-5}, projector: full, language: {rank: 64, learning_rate: 2.0e-4}}
```

Each part of the model learns at its own rate, which is how a recipe gives each modality one: `vision` sees pictures and
clips, `audio` hears recordings, `language` reads all of them. With `train.modality_parts: {text: [language]}` a kind of
samples moves some parts only. `tailor check` and `tailor run` print the plan: samples and tokens by source and
modality. What a limit, a weight or a repeat below one leaves out is named in the ledger.
"""


def section(title: str, settings: type[Settings]) -> list[str]:
    """A table of one settings class, then the tables of the classes inside it."""
    lines = [f"\n## {title}\n", (settings.__doc__ or "").strip() + "\n", *settings_table(settings)]
    inner: list[tuple[str, type[Settings]]] = []
    for name, field in settings.model_fields.items():
        nested = model_in(field.annotation)
        if nested and nested is not settings:
            inner.append((f"{title}.{name}" if title != "Recipe" else name, nested))
    for inner_title, nested in inner:
        lines += section(inner_title, nested)
    return lines


def recipe_page() -> str:
    """docs/recipe.md"""
    lines = [HEAD, *section("Recipe", Recipe), "\n## task\n", "| task | what it does |", "|---|---|"]
    lines += [f"| `{name}` | {TASKS.summary(name)} |" for name in TASKS]
    lines += section("task.extract.FIELD", FieldSpec)
    lines += section("task.classify", ClassifySettings)
    lines += section("task.choose", ChooseSettings)
    lines += section("task.caption", CaptionSettings)
    lines += section("task.transcribe", TranscribeSettings)
    lines += section("task.ground", GroundSettings)
    lines += section("task.match", MatchSettings)
    return "\n".join(lines) + "\n"


PAGES = {"recipe.md": recipe_page, "methods.md": methods_page, "reliability.md": reliability_page}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
