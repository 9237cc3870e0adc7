"""docs/methods.md: every method with its settings, what it cost and what it scored, as the benchmarks stored it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from words import settings_table

from mllm_tailor.core.io import human_bytes, read_json
from mllm_tailor.methods import METHODS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
DATA = {"drawn": "drawn receipts", "sroie": "real receipts (SROIE)"}

HEAD = """# The methods

`method: {name: ...}` chooses what is trained and how the update is parameterised. The rest of the recipe is
independent of it; without `train.learning_rate`, each method uses its default. This page is generated from the code and
from stored measurements (`make docs`).

`parts` names what is trained: vision, projector, language, audio, head. Each part may have its own method:

```yaml
method:
  name: qlora
  rank: 128
  parts: {vision: {method: lora, rank: 16, learning_rate: 2.0e-5}, projector: full, language: qlora}
```

A method that is an optimizer (lomo, adalomo, mezo, galore, apollo) updates every trained weight, so other parts
can only be frozen. Incompatible settings (a part that the model lacks, a rank above the width of a layer, accumulation
with lomo) are refused before the model is loaded.

`tailor compare-methods recipe.yaml --methods lora,qlora,full --budget 10m` runs several methods on the same
data and budget (also `10 cpu minutes`, which other work on the machine does not change, `3e` for epochs, `200 steps`,
or `8GB` of peak memory; `lora:rank=8:alpha=16` changes settings of one method). The recipe's learning rate is kept for
methods with the same default rate; others use their default. Objectives are compared in the same table:
`--methods cross_entropy,prefer:loss=mpo,lora+reward:group_size=4:learning_rate=1e-4` (`+` joins a method and an
objective; settings of `train` may stand beside those of the objective; CPU minutes include the replies that an
objective learns from).
`tailor sweep recipe.yaml --learning-rates 1e-4,1e-3 --ranks 8,32 --budget 3e` finds a rate and rank by successive
halving on the dev split.

The objective is set in `train` ([rewards, preferences and teachers](rewards.md)):

- default: the cross-entropy of the answers;
- `distill: {teacher: FOLDER_OR_ID}`: labels and the logits of a larger model (Hinton et al. 2015), or with
  `of: vision` the hidden states of its vision tower (Gao et al. 2024);
- `prefer: {loss: dpo}`: DPO (Rafailov et al. 2023), MPO, KTO, SimPO or ORPO, as a second stage. The rejected reply of
  a pair is the one that the row states (`rejected`, see [data](data.md)), else the model's own wrong reading of the
  sample;
- `reward: {loss: grpo}`: the task's own metric on groups of sampled replies (GRPO, Dr. GRPO, RLOO, GSPO, DAPO), as a
  second stage; its settings are in [recipe](recipe.md#trainreward);
- `task: match` with a CLIP or SigLIP: the contrastive loss; large batches by cached gradients (`micro_batch_size` pairs
  at a time);
- `method: {name: mezo, objective: metric}`: the task's own metric, which has no gradient.
"""

WHEN = {
    "lora": "The one to begin with: close to full tuning at a fraction of its memory, mergeable, loads everywhere.",
    "qlora": "When the model does not fit otherwise: a quarter of the memory of its weights, somewhat slower steps.",
    "rslora": "With ranks of 64 and more, where plain LoRA's scale makes more rank bring nothing.",
    "dora": "When LoRA of a low rank falls short and slower steps are no matter.",
    "pissa": "When few steps must do: it begins where the weights are largest. Needs lower rates than LoRA.",
    "lora_plus": "As LoRA; when its training is slow to take off.",
    "lora_fa": "When activations, not weights, fill the memory: long inputs, large batches.",
    "dylora": "When the rank to ship is not known yet: train once, cut with `tailor truncate`.",
    "adalora": "When a small adapter must be as good as it can, and there are hundreds of steps to sort ranks in.",
    "bottleneck": "To reproduce work with adapters, or when an update must not be linear. Stays beside the model.",
    "ia3": "When hundreds of adapters must be stored or swapped: kilobytes each.",
    "vera": "As (IA)3, with a little more room to learn.",
    "oft": "When what the model knows must be kept: angles between neurons stay as they are.",
    "prefix": "When the weights must not be touched at all and a tiny file is wanted.",
    "prompt": "As prefix with still fewer weights; only for large models, and it needs many steps.",
    "full": "When there is memory for 16 bytes a weight, or the model is small; the reference for all others.",
    "lisa": "Full tuning's reach when its optimizer state does not fit.",
    "lomo": "Full tuning in the memory of the weights; plain gradient descent, so choose the rate with care.",
    "adalomo": "As lomo, far less sensitive to the rate; the better default of the two.",
    "mezo": "When only inference fits, or the objective has no gradient; thousands of steps and a low rate.",
    "galore": "Full tuning when Adam's state does not fit; a decomposition every so many steps costs time.",
    "apollo": "As galore without decompositions, and with less state.",
    "norms": "A quick, nearly free change of domain; a good first stage.",
    "freeze": "Under `parts`, for what must stay as it is.",
}


def methods_page() -> str:
    """The whole page."""
    measured = {which: read_json(file) for which in DATA if (file := RESULTS / f"methods_{which}.json").exists()}
    lines = [HEAD, *_scores(measured), *_ratios()]
    for name in METHODS:
        tuning_method = METHODS.load(name)
        summary = METHODS.summary(name)
        lines.append(f"\n## {name}\n\n{summary[:1].upper()}{summary[1:]}.\n\n{inspect.getdoc(tuning_method) or ''}\n")
        lines.append(f"**When.** {WHEN[name]}\n")
        if name != "freeze":
            lines.append(f"**Rate** where the recipe names none: `{tuning_method.rate:g}`.\n")
            lines += [*_measured(name, measured), ""]
        lines += settings_table(tuning_method.Settings)
    return "\n".join(lines) + "\n"


def _scores(measured: dict[str, Any]) -> Iterator[str]:
    """What was compared, and how."""
    yield "## Measured cost and score\n"
    if not measured:
        yield "Not measured yet: `python benchmarks/method_scores.py drawn`, and `sroie`.\n"
        return
    yield (
        "`python benchmarks/method_scores.py drawn` and `sroie`: the embedded model (12 million weights, as of its "
        "second milestone) learns company, date and total from 24 receipts, each seen once, in 12 steps, and is "
        "scored on 24 others. This shows what a method costs and whether it learns at all; it does not rank similar "
        "methods. Rates were reasoned, not searched. Seconds are CPU seconds of training on one thread; memory is"
        " the whole process's peak, Python and libraries included (about 0.6 GiB). A method that is in no table has "
        "not run yet; the command resumes where it stopped.\n"
    )
    for which, found in measured.items():
        yield from _table(DATA[which], found)


def _table(title: str, found: dict[str, Any]) -> Iterator[str]:
    baselines = ", ".join(f"{name.removeprefix('baseline_')} {value:.1f}" for name, value in found["baselines"].items())
    yield f"### On {title}\n"
    yield f"Base model {found['untouched']['value']:.1f}; baselines: {baselines} ({found['metric']}, 0 to 100).\n"
    yield "| method | score | gain (95 % interval) | rate | trained weights | seconds | peak memory | on disk |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in sorted(found["methods"], key=lambda one: -(one["score"] or {"value": -1})["value"]):
        if one["score"] is None:
            yield f"| {one['name']} | failed: {one['problem']} | | | | | | |"
            continue
        gain = one["gain"]
        yield (
            f"| {_short(one['name'])} | {one['score']['value']:.1f} | {gain['value']:+.1f} ({gain['low']:+.1f} to "
            f"{gain['high']:+.1f}) | {one['rate']:g} | {one['trained']:,} | {one['cpu_seconds']:.0f} | "
            f"{human_bytes(one['peak_bytes'])} | {human_bytes(one['disk_bytes'])} |"
        )
    yield ""


def _short(words: str) -> str:
    """Without the rate, which has its own column."""
    return ":".join(word for word in words.split(":") if not word.startswith("learning_rate="))


def _measured(name: str, measured: dict[str, Any]) -> Iterator[str]:
    """A line a data set."""
    for which, title in DATA.items():
        rows = [one for one in measured.get(which, {"methods": []})["methods"] if one["name"].split(":")[0] == name]
        if not rows:
            yield f"**Measured** on {title}: not yet.\n"
        for one in rows:
            shown = f" ({_short(one['name'])})" if len(rows) > 1 else ""
            yield f"**Measured** on {title}{shown}: {_verdict(one)}\n"


def _verdict(one: dict[str, Any]) -> str:
    if one["score"] is None:
        return f"failed ({one['problem']})."
    gain = one["gain"]
    clear = "learns" if gain["low"] > 0 else "harms" if gain["high"] < 0 else "no clear gain in so few steps"
    return (
        f"{one['score']['value']:.1f}, {gain['value']:+.1f} over the base model ({gain['low']:+.1f} to "
        f"{gain['high']:+.1f}: {clear}); {one['trained']:,} weights, {one['cpu_seconds']:.0f} s, "
        f"{human_bytes(one['peak_bytes'])} at most, {human_bytes(one['disk_bytes'])} on disk."
    )


def _ratios() -> Iterator[str]:
    """Ratios beside those of the papers."""
    file = RESULTS / "methods.json"
    yield "## Ratios, next to those of the papers\n"
    if not file.exists():
        yield "Not measured yet: `python benchmarks/methods.py`.\n"
        return
    found = read_json(file)
    size = f"{found['sizes']['weights']:,} random weights" if "sizes" in found else "random weights (not measured yet)"
    yield (
        f"`python benchmarks/methods.py`, on one thread of a CPU. Memory: an InternVL of {size} in bf16; what a "
        "process needs for two steps of one short sample beyond what it held before, reading the file left out; "
        "language model and head are trained. The papers measured billions of weights on GPUs. Scores are those of the "
        "real receipts above, too few to order them. Why adalomo and qlora need more here than their "
        "tensors add up to was not examined.\n"
    )
    yield "| figure | measured | published |"
    yield "|---|---|---|"
    for kind in found.values():
        for name, (value, published) in kind["figures"].items():
            yield f"| {name} | {value:.3f} | {published} |"
    yield ""
