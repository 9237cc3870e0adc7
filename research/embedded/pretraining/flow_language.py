"""The reader's language model: it learns to copy flows of cells, words never seen included, without pixels."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pretraining import architecture, attention_supervision, checkpoint, copying, flow, flow_pages, language, optim
from pretraining.architecture import SymbolEmbedding
from pretraining.language import FIRST, Example, assemble, assemble_places
from pretraining.stage import Stage

BACK = (1, 2, 3, 4, 5, 6, 1, 2)  # distances the heads of the first layer look back
GUIDED = 4  # heads of each layer that are told where to look: together they carry what a cell shows
CHARACTERS = tuple(flow.character_of(index) for index in range(flow.CLASSES))
PROBE_EVERY = 1500  # seconds


def build(**sizes: int) -> tuple[nn.Module, nn.ModuleDict]:
    """The whole model (its tower unused), and the parts of it and beside it that this stage trains."""
    model = architecture.build_model(**sizes)
    text = model.model.language_model
    symbols = SymbolEmbedding(text.config.hidden_size, flow.SLOTS, CHARACTERS)
    attention_supervision.look_back(text, BACK)
    return model, nn.ModuleDict({"language": text, "lm_head": model.lm_head, "symbols": symbols})


def batches(seed: int, first: int, stage: Stage, budget: int) -> Iterator[list[Example]]:
    """Batches of about `budget` ids, as hard as the stage's level asks for."""
    number = first
    while True:
        rng = np.random.default_rng([seed, number])
        number += 1
        pool = [flow_pages.random_example(rng, stage.facts["level"]) for _ in range(40)]
        yield from packed(pool, budget, rng)


def packed(pool: list[Example], budget: int, rng: np.random.Generator) -> Iterator[list[Example]]:
    """Examples of similar length together, in random order of the batches."""
    found: list[list[Example]] = [[]]
    for example in sorted(pool, key=language.length):
        if found[-1] and language.length(example) * (len(found[-1]) + 1) > budget:
            found.append([])
        found[-1].append(example)
    for index in rng.permutation(len(found)):
        yield found[index]


def train(
    minutes: float,
    resume: bool,
    rate: float = 2e-3,
    budget: int = 2500,
    seed: int = 22,
    name: str = "copy",
    guide: float = 0.3,
    level: float = 0.0,
    until: float = math.inf,
    **sizes: int,
) -> None:
    """Train for `minutes` of the wall clock in all or until the moment `until`; goes on from the checkpoint `name`.

    `average` in the checkpoint holds exponentially averaged weights; the probe is asked of these.
    """
    torch.manual_seed(seed)
    model, parts = build(**sizes)
    average = AveragedModel(parts, multi_avg_fn=get_ema_multi_avg_fn(0.997))
    guided = attention_supervision.Guide(parts["language"], GUIDED, flow.SLOTS)
    modules = {**dict(parts.items()), "guide": guided, "average": average}
    trained = [nn.ModuleDict({key: module}) for key, module in modules.items() if key != "average"]
    stage = Stage(name, minutes, modules, optim.make_optimizers(trained, rate), rate, flat=0.6, every=25, until=until)
    stage.facts["level"] = level
    if resume and checkpoint.exists(name):
        stage.resume()
        print(f"resumed at step {stage.facts['step']:.0f}", flush=True)
    print(f"{sum(p.numel() for p in parts['language'].parameters()):,} parameters", flush=True)
    loader = batches(seed, int(stage.facts["step"]), stage, budget)
    probed = time.time()
    for _ in stage.steps():
        examples = next(loader)
        ids, labels = assemble(examples)
        with optim.computing("cpu"):
            embeds = language.symbol_embeds(model, parts["symbols"], ids, examples)
            loss, right = language.answer_loss(parts["language"], parts["lm_head"], embeds, labels)
            look, slot, landed = guided(assemble_places(examples, labels), FIRST)
        figures = {"loss": loss, "right": right, "look": look, "slot": slot, "landed": landed, "ids": ids.numel()}
        stage.learn(loss + guide * (look + slot), figures, f"level {stage.facts['level']:.3f}")
        average.update_parameters(parts)
        stage.facts["level"] = language.next_level(stage.facts["level"], right)
        if time.time() - probed > PROBE_EVERY and stage.facts["level"] > 0.1:
            shares = copying.shares(average.module, list(copying.flow_samples(12)))
            print("probe", " ".join(f"{key} {value:.3f}" for key, value in shares.items()), flush=True)
            guided.heard.clear()
            probed = time.time()
