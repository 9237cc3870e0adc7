"""The model card (README.md) of an exported folder: what it is, how good it measured, how to use it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_tailor import __version__
from mllm_tailor.core.io import read_json, read_jsonl, write_atomic
from mllm_tailor.models import LoadedModel
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.scoring.systems import CONSTANT, NEAREST, System

SHOWN_METRICS = 4
FORMS = {"merged": "the whole model, with what was trained folded in", "adapter": "the adapter alone, in PEFT's layout"}
MERGED = """\
```python
from transformers import AutoModelForMultimodalLM, AutoProcessor

processor = AutoProcessor.from_pretrained(FOLDER)
model = AutoModelForMultimodalLM.from_pretrained(FOLDER)
```

or with mllm-tailor, which also keeps the tiles and the system text of the training: `model: FOLDER` in a recipe."""
ADAPTER = """\
```python
from peft import PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor

base = AutoModelForMultimodalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```"""
REFLOWED = """\
- Images: the printed lines of a page are set one after the other before it is cut into tiles (`model.reflow`). Only
  mllm-tailor does so: other programs have to be given images that `mllm_tailor.media.reflow.reflow` made, cut into the
  tiles of one column, without a thumbnail"""
COMPARES = MERGED.replace("AutoModelForMultimodalLM", "AutoModel")


def write_card(out: Path, folder: RunFolder, run: ResolvedRun, model: LoadedModel, form: str, checked: str) -> None:
    """Write README.md. `checked` says in Markdown what was measured on the exported folder itself."""
    sections = [_head(run.name, model), _about(folder, run, model, form), _figures(folder), checked, _use(model, form)]
    sections.append(LICENCE)
    write_atomic(out / "README.md", "\n\n".join(filter(None, sections)) + "\n")


def _head(name: str, model: LoadedModel) -> str:
    """The lines the hub reads. A base that lies in a folder is named in the text alone."""
    lines = ["---", "library_name: transformers"]
    if not Path(model.path).exists() and model.path.count("/") == 1:
        lines.append(f"base_model: {model.path}")
    lines += ["tags: [mllm-tailor]", "---", "", f"# {name}"]
    return "\n".join(lines)


def _about(folder: RunFolder, run: ResolvedRun, model: LoadedModel, form: str) -> str:
    identity = read_json(folder.environment)["model"] if folder.environment.is_file() else {}
    revision = f" at revision {identity['revision']}" if identity.get("revision") else ""
    weights = f" (weights sha256 {identity['weights_sha256'][:16]}…)" if identity.get("weights_sha256") else ""
    counts = Counter(row["part"] for _, row in read_jsonl(folder.ledger)) if folder.ledger.is_file() else Counter()
    rows = ", ".join(f"{count} {part.replace('_', '-')}" for part, count in counts.items())
    method = json.dumps(run.recipe.model_dump(mode="json")["method"], ensure_ascii=False)
    task = json.dumps(run.recipe.model_dump(mode="json")["task"], ensure_ascii=False)
    return "\n".join(
        [
            f"A {model.family.title} model tuned with mllm-tailor {__version__}; {FORMS[form]}.",
            "",
            f"- Base: `{_name(run.model.path)}`{revision}{weights}",
            f"- Method: `{method}`",
            f"- Task: `{task}`",
            f"- Samples: {rows or 'not recorded'}",
            f"- Numbers: {str(model.dtype).removeprefix('torch.')}; tiles {model.tiles.min} to {model.tiles.max}"
            f"{' and a thumbnail' if model.tiles.thumbnail else ''}",
            *([REFLOWED] if model.reflow else []),
        ]
    )


def _name(path: str) -> str:
    """A hub id as it is; of a folder only its name, since a card travels and the folder does not."""
    return Path(path).name if Path(path).exists() else path


def _figures(folder: RunFolder) -> str:
    """Base and tuned on the same held-out samples, with baselines; empty where the run was not scored."""
    if not folder.scores.is_file():
        return ""
    scores = read_json(folder.scores)
    rows = [
        _figure(name, scores["gain"][name], scores["systems"])
        for name in scores["metrics"][:SHOWN_METRICS]
        if name in scores["gain"]
    ]
    count = len(scores["systems"][System("tuned", scores["mode"]).key]["ids"])
    head = f"## Measured\n\nOn {count} held-out samples the training never saw, {scores['mode']} decoding, in brackets"
    head += " 95 % intervals.\n\n| metric | base | tuned | gain | constant answer | nearest neighbour |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def _figure(name: str, gain: Mapping[str, Any], systems: Mapping[str, Any]) -> str:
    base, tuned, more = (
        f"{gain[key]['value']:+.1f}" if key == "difference" else f"{gain[key]['value']:.1f}"
        for key in ("base", "tuned", "difference")
    )
    between = f"{gain['difference']['low']:+.1f} to {gain['difference']['high']:+.1f}"
    baselines = [
        f"{systems[key]['metrics'][name]['value']:.1f}" if name in systems.get(key, {}).get("metrics", {}) else "—"
        for key in (CONSTANT.key, NEAREST.key)
    ]
    return f"| {name} | {base} | {tuned} | {more} ({between}) | {' | '.join(baselines)} |"


def _use(model: LoadedModel, form: str) -> str:
    if form == "adapter":
        code = ADAPTER.format(base=_name(model.path))
    else:
        code = COMPARES if model.family.compares else MERGED
    served = {
        ("adapter", "merged"): "vllm serve FOLDER",
        ("merged", "merged"): "vllm serve FOLDER",
        ("adapter", "adapter"): "vllm serve BASE --enable-lora --lora-modules tuned=FOLDER",
    }.get((model.family.vllm, form))
    line = f"With vLLM: `{served}`." if served else "vLLM's list does not name this form of this family."
    return f"## Use\n\n{code}\n\n{line}"


LICENCE = """\
## Licence

These weights follow the licence of the base model; what the training data allows comes on top. Name yours here before
you share them."""
