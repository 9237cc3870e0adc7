"""Writes the reference pages from the code they describe; a test keeps them in step. Run: make docs"""

from __future__ import annotations

from pathlib import Path

from methods_page import methods_page
from reliability_page import reliability_page
from side_by_side_tables import performance_page
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

One YAML file describes a whole job. This page is generated from the code (`make docs`). A setting that is left out
takes the default shown; an unknown setting is refused, and the message names the most similar one.

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

The command line overrides any setting for one run: `tailor run recipe.yaml train.epochs=5 model.dtype=float32`.

## Stages

With `stages`, a recipe trains several times in order. Each stage may set data, task, method and schedule; the rest is
taken from the recipe:

```yaml
name: questions
data: {train: path/to/folder, held_out: {fraction: 0.1}}
method: {name: lora, rank: 32}
stages:
  - {name: captions, task: caption, train: {epochs: 1}}
  - {name: answers, task: answer, method: {name: full, parts: [language]}}
```

After each stage, the update is merged into the model, and the next stage starts from that plain checkpoint
(`runs/questions/1-captions/model`). So any method may follow any other, and no stage depends on how an earlier one was
trained. Two consequences: a stage on a 4-bit base quantises the merged weights again, and a method that cannot be
merged can only come last. Each stage is a run folder. After each stage, the model is scored on the held-out samples of
every stage, and one table shows gains and forgetting. A sample that one stage trains on cannot be held out in another.
The name of a stage addresses its settings: `tailor run recipe.yaml stages.answers.train.epochs=5`.

## Mixtures

`data.sources` mixes other samples into every epoch, each source with its own task and amount: general data against
forgetting, or several kinds of media from one domain. Held-out samples come from `data.train` only.

```yaml
data:
  train: path/to/videos
  sources:
    - {train: path/to/images, task: caption, weight: 0.5}            # one image per two videos
    - {name: general, train: path/to/chats, task: answer, limit: 2000, repeat: 1}
train: {one_modality: true}                                          # images in one step, videos in the next
method:
  name: lora
  parts: {vision: {rank: 8, learning_rate: 2.0e-5}, projector: full, language: {rank: 64, learning_rate: 2.0e-4}}
```

Each part of the model has a learning rate, and so has each modality: `vision` encodes images and videos, `audio`
encodes recordings, `language` receives all of them. With `train.modality_parts: {text: [language]}`, samples of one
kind train some parts only. `tailor check` and `tailor run` print the samples and tokens of an epoch by source and
modality. The ledger names samples that a limit, a weight or a repeat below one leaves out.
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


PAGES = {
    "recipe.md": recipe_page,
    "methods.md": methods_page,
    "reliability.md": reliability_page,
    "performance.md": performance_page,
}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
