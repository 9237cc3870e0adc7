"""Stage three: tower, projector and language model become one.

The projector learns to give the oracle's embeddings while everything is trained on the answers, the tower goes on
naming characters, and the language model's heads are still told where to look.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mllm_tailor.training import distributed as processes
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import InternVLForConditionalGeneration

from pretraining import architecture, attention_supervision, checkpoint, optim, pages, pictures, tower, vision
from pretraining.architecture import IMAGE, SymbolEmbedding
from pretraining.language import FIRST, Example, answer_loss, assemble, assemble_places
from pretraining.stage import Stage

PARTS = ("model", "head", "symbols", "guide")


class Pictures(IterableDataset):
    """Endless drawn pictures, each `every`th from the `first`; number i depends only on the seed and i."""

    def __init__(self, seed: int, first: int, every: int = 1, invent: float = 0.0) -> None:
        self.seed, self.first, self.every, self.invent = seed, first, every, invent

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        number, every = self.first + self.every * info.id, self.every * info.num_workers
        while True:
            yield pictures.random_picture(np.random.default_rng([self.seed, number]), invent=self.invent)
            number += every


def from_stages(vision_name: str, language_name: str) -> dict[str, nn.Module]:
    """A model with the tower and the language model (or else the kept one) of the earlier stages, a fresh projector."""
    parts = _fresh_parts(tower.tower_sizes(vision_name))
    model = parts["model"]
    checkpoint.load(vision_name, {"tower": model.model.vision_tower, "head": parts["head"]})
    language = {"language": model.model.language_model, "lm_head": model.lm_head}
    language |= {name: parts[name] for name in ("symbols", "guide")}
    if checkpoint.exists(language_name):
        checkpoint.load(language_name, language)
    elif not checkpoint.step(checkpoint.LANGUAGE, language):
        raise FileNotFoundError(f"no checkpoint {language_name!r}: run the language stage first")
    return parts


def from_checkpoint(name: str) -> tuple[dict[str, nn.Module], dict]:
    """The parts of a checkpoint of this stage, and its facts."""
    parts = _fresh_parts(tower.tower_sizes(name, "model/model.vision_tower."))
    return parts, checkpoint.load(name, parts)


def from_folder(folder: Path) -> dict[str, nn.Module]:
    """The parts of a shipped model, whose glyph head and symbols lie here, with a fresh guide."""
    found = InternVLForConditionalGeneration.from_pretrained(folder).float()
    width, inner = found.config.vision_config.hidden_size, found.config.vision_config.intermediate_size
    parts = _fresh_parts({"width": width, "ratio": inner // width})
    parts["model"].load_state_dict(found.state_dict())
    checkpoint.step(checkpoint.HEADS, {name: parts[name] for name in ("head", "symbols")})
    return parts


def _fresh_parts(vision: dict[str, int]) -> dict[str, nn.Module]:
    model = architecture.build_model(vision=vision)
    head = tower.GlyphHead(model.config.vision_config.hidden_size)
    symbols = SymbolEmbedding(model.config.text_config.hidden_size)
    guide = attention_supervision.Guide(model.model.language_model)
    return dict(zip(PARTS, (model, head, symbols, guide), strict=True))


def visual_tokens(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Patch features [tiles, 1024, width] to [tiles * 256, text width], as InternVLModel.get_image_features does."""
    side = int(features.shape[1] ** 0.5)
    grid = features.reshape(len(features), side, side, -1)
    shuffled = model.model.pixel_shuffle(grid, scale_factor=model.config.downsample_ratio)
    projected = model.model.multi_modal_projector(shuffled.reshape(len(features), -1, shuffled.shape[-1]))
    return projected.flatten(0, 1)


def align(parts: dict[str, nn.Module], device: torch.device, count: int = 200, steps: int = 600) -> None:
    """Teach the fresh projector the oracle's embeddings on features of `count` text tiles computed once."""
    model, symbols = parts["model"], parts["symbols"]
    features, targets = [], []
    with torch.no_grad(), optim.computing(device):
        for (grey, labels), _ in zip(vision.Tiles(11, documents=0.5), range(count), strict=False):
            features.append(
                tower.patch_features(model.model.vision_tower, tower.normalise(grey[None].to(device))).bfloat16()
            )
            tokens = torch.from_numpy(pages.to_tokens(labels[None].numpy())).to(device)
            targets.append((symbols(tokens, model.get_input_embeddings()).bfloat16(), (tokens >= 0).all(1)))
    projector = model.model.multi_modal_projector
    optimizers = optim.make_optimizers([projector], 3e-3)
    for step in range(steps):
        chosen = torch.randint(count, (6,)).tolist()
        with optim.computing(device):
            visual = visual_tokens(model, torch.cat([features[index] for index in chosen]).float())
        oracle = torch.cat([targets[index][0] for index in chosen]).float()
        known = torch.cat([targets[index][1] for index in chosen])
        loss = (visual.float() - oracle)[known].pow(2).mean() / oracle[known].pow(2).mean()
        loss.backward()
        optim.step(optimizers, 3e-3 * optim.rate_at(step / steps))
        if step % 100 == 99:
            print(f"projector step {step + 1} distance {loss.item():.3f}", flush=True)


def losses(
    parts: dict[str, nn.Module], batch: list[pictures.Picture], device: torch.device
) -> tuple[dict[str, torch.Tensor], float]:
    """Answer loss, distance of the projector from the oracle, glyph loss and the guide's two of a few pictures."""
    model, head, symbols, guide = (parts[name] for name in PARTS)
    grey = torch.from_numpy(np.concatenate([picture.tiles for picture in batch])).to(device)
    labels = torch.from_numpy(np.concatenate([picture.labels for picture in batch])).to(device)
    examples = [Example(pages.to_tokens(picture.labels), 0, picture.turns, picture.places) for picture in batch]
    ids, targets = (part.to(device) for part in assemble(examples))
    with optim.computing(device):
        features = tower.patch_features(model.model.vision_tower, tower.normalise(grey))
        glyph = vision.glyph_loss(head(features), labels.flatten(1, 2))
        visual = visual_tokens(model, features)
        with torch.no_grad():
            tokens = torch.from_numpy(np.concatenate([example.tokens for example in examples])).to(device)
            oracle = symbols(tokens, model.get_input_embeddings())
        # A token without any readable label (a thumbnail) has no oracle.
        known = (tokens >= 0).any(1) & (tokens >= 0).all(1)
        filled = (tokens > 0).any(1)
        weight = known.float() * torch.where(filled, 1.0, 0.2)
        scale = oracle.float()[filled].pow(2).mean()
        distance = ((visual.float() - oracle.float()).pow(2).mean(-1) * weight).sum() / weight.sum() / scale
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), visual.to(embeds.dtype))
        answer, right = answer_loss(model.model.language_model, model.lm_head, embeds, targets)
        look, slot, _ = guide(assemble_places(examples, targets.cpu()).to(device), FIRST)
    return {"answer": answer, "oracle": distance, "glyph": glyph, "look": look, "slot": slot}, right


def make_optimizers(parts: dict[str, nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    model = parts["model"]
    named = [
        (model.model.vision_tower, 1.0),
        (parts["head"], 1.0),
        (model.model.multi_modal_projector, 1.0),
        (model.model.language_model, 0.5),
        (nn.ModuleDict({"lm_head": model.lm_head}), 0.5),
        (parts["guide"], 0.5),
    ]
    found = []
    for module, scale in named:
        for optimizer in optim.make_optimizers([module], rate):
            for group in optimizer.param_groups:
                group["scale"] = scale
            found.append(optimizer)
    return found


def train(
    minutes: float,
    resume: bool,
    rate: float = 1e-3,
    batch: int = 2,
    seed: int = 3,
    name: str = "join",
    vision_name: str = "vision",
    language_name: str = "language",
    oracle_until: float = 0.6,
    tower_layers: int = 6,
    guided: float = 0.1,
    start: str = "",
    invent: float = 0.0,
) -> None:
    """Train for `minutes` of the wall clock in all; `oracle_until` is when the pull towards the oracle ends.

    Only the last `tower_layers` of the tower learn (a backward pass through all of it is half of a step), and `guided`
    weighs how much the heads are told where to look. `start` is a shipped model's folder to go on from instead of the
    earlier stages; a share `invent` of the documents has names and streets of invented words.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    resumed = resume and checkpoint.exists(name)
    if resumed:
        parts, _ = from_checkpoint(name)
    else:
        parts = from_folder(Path(start)) if start else from_stages(vision_name, language_name)
    for part in parts.values():
        part.to(device)
    parts["symbols"].requires_grad_(False)
    eye = parts["model"].model.vision_tower
    if tower_layers < len(eye.encoder.layer):
        for still in (eye.embeddings, *eye.encoder.layer[: len(eye.encoder.layer) - tower_layers]):
            still.requires_grad_(False)
    if not resumed and not start:
        align(parts, device)
    stage = Stage(name, minutes, parts, make_optimizers(parts, rate), rate, flat=0.4, every=25)
    if resumed:
        stage.resume()
    stage.facts.setdefault("pictures", stage.facts["step"] * batch)
    drawn = Pictures(seed, int(stage.facts["pictures"]) + processes.rank(), processes.world_size(), invent)
    loader = iter(DataLoader(drawn, batch_size=batch, num_workers=1, prefetch_factor=4, collate_fn=list))
    for done in stage.steps():
        found, right = losses(parts, next(loader), device)
        stage.facts["pictures"] += batch * processes.world_size()
        pull = max(0.05, 1 - done / oracle_until)
        objective_inputs = pull * found["oracle"] + 0.7 * found["glyph"] + guided * (found["look"] + found["slot"])
        stage.learn(found["answer"] + objective_inputs, {"right": right, **found})
