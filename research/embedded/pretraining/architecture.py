"""The whole model, the symbol embedding that stands in for pixels, prompts as the product writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from mllm_tailor.models.bundled.build import build_tokenizer
from torch import nn
from transformers import GenerationConfig, InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

from pretraining import checkpoint, glyph_slots, optim, tower

TOKENIZER = build_tokenizer()
SIDE = 16  # visual tokens a tile side
VISUAL = SIDE * SIDE
IMAGE, END = TOKENIZER.context_image_token_id, TOKENIZER.eos_token_id


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def prompt_ids(visual: int, question: str) -> list[int]:
    """Ids of a user turn with a picture of `visual` tokens and the opening of the answer."""
    head = encode("<|im_start|>user\n<img>")
    return [*head, *[IMAGE] * visual, *encode(f"</img>\n{question}<|im_end|>\n<|im_start|>assistant\n")]


def answer_ids(answer: str) -> list[int]:
    return [*encode(answer), END]


def conversation_ids(visual: int, turns: tuple[tuple[str, str], ...]) -> tuple[list[int], list[int]]:
    """Ids of a conversation about a picture of `visual` tokens, and labels: the answers, -100 elsewhere."""
    ids: list[int] = []
    labels: list[int] = []
    for number, (question, answer) in enumerate(turns):
        again = encode(f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        prompt, reply = again if number else prompt_ids(visual, question), answer_ids(answer)
        ids += prompt + reply
        labels += [-100] * len(prompt) + reply
    return ids, labels


def build_model(
    width: int = 256,
    layers: int = 6,
    heads: int = 8,
    vision: dict[str, int] | None = None,
    downsample: float = 0.5,
) -> InternVLForConditionalGeneration:
    """A random model; its parts are trained one after the other. A visual token is 1 / `downsample` patches a side."""
    eye = tower.build_tower(**(vision or {}))
    text = Qwen2Config(
        vocab_size=len(TOKENIZER),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=11 * width // 4,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=eye.config,
            text_config=text,
            image_token_id=IMAGE,
            image_seq_length=VISUAL,
            downsample_ratio=downsample,
            tie_word_embeddings=False,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[END, TOKENIZER.pad_token_id], pad_token_id=TOKENIZER.pad_token_id
    )
    with torch.no_grad():  # large embeddings: what is copied stands out from what layers add
        embedding = model.get_input_embeddings().weight
        nn.init.normal_(embedding, std=0.25)
        model.lm_head.weight.copy_(embedding * 0.2)
    return model


def start_language(modules: dict[str, nn.Module], folder: Path) -> None:
    """Take language model, output head and (where kept) the symbol embedding that belong to a model folder."""
    found = InternVLForConditionalGeneration.from_pretrained(folder).float()
    modules["language"].load_state_dict(found.model.language_model.state_dict())
    modules["lm_head"].load_state_dict(found.lm_head.state_dict())
    checkpoint.step(checkpoint.HEADS, {"symbols": modules["symbols"]})


class SymbolEmbedding(nn.Module):
    """What the projector will have to produce, from the characters themselves instead of their pixels.

    A visual token is the sum over its `slots` of the language model's own embedding of the character, turned by a
    matrix of the slot, plus the token's row and column in its tile. At first every slot has channels of its own, so
    that one attention head can carry a character undisturbed by the others, and the last 16 hold the place.
    """

    def __init__(
        self, width: int, slots: int = 4 * glyph_slots.SLOTS, characters: Sequence[str] = glyph_slots.CHARACTERS
    ) -> None:
        super().__init__()
        count, places = slots, 16
        own = (width - places) // count  # channels of a slot
        shared = torch.linalg.qr(torch.randn(width, width))[0][:, :own] * (width / own) ** 0.5
        turns = torch.zeros(count, width, width)
        for slot in range(count):
            turns[slot, :, slot * own : (slot + 1) * own] = shared
        self.slot_turns = nn.Parameter(turns)
        angle = torch.arange(SIDE).float()[:, None] * math.pi * torch.tensor([0.9, 0.45, 0.2, 0.0625])
        code = 1.5 * torch.stack([angle.cos(), angle.sin()], -1).flatten(1)  # [SIDE, 8]
        self.row_embed = nn.Parameter(nn.functional.pad(code, (width - places, places // 2)))
        self.column_embed = nn.Parameter(nn.functional.pad(code, (width - places // 2, 0)))
        ids = [encode(character)[0] if character else 0 for character in characters]
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    def forward(
        self,
        tokens: torch.Tensor,
        embedding: nn.Embedding,
        first: torch.Tensor | None = None,
        beliefs: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Classes [n, 12] and places in the page `first` [n] to [n, width].

        With `beliefs` [n, 12, CLASSES], probabilities stand in for the classes: what a tower that doubts would say.
        """
        tokens = tokens.clamp(min=0)
        if beliefs is None:
            letters = embedding(self.ids[tokens]) * (tokens != glyph_slots.NONE).float().unsqueeze(-1)  # [n, 12, width]
        else:
            letters = beliefs[..., 1:] @ embedding(self.ids[1:]).to(beliefs.dtype)
        place = (first if first is not None else torch.arange(len(tokens), device=tokens.device)) % VISUAL
        return (
            torch.einsum("nkd,kde->ne", letters, self.slot_turns)
            + self.row_embed[place // SIDE]
            + self.column_embed[place % SIDE]
        )


class Beliefs:
    """What a trained tower believes about slots whose truth is known: samples of its head's probabilities a class.

    `bank` is [CLASSES, n, CLASSES]; row c holds probabilities the tower gave where the truth was c.
    """

    def __init__(self, bank: torch.Tensor) -> None:
        self.bank = bank

    @classmethod
    @torch.no_grad()
    def measured(cls, vision: nn.Module, head: nn.Module, pairs: list, most: int = 400) -> Beliefs:
        """From the tower's answers about drawn tiles: `pairs` of grey [448, 448] and labels [32, 32, SLOTS]."""
        found: list[list[torch.Tensor]] = [[] for _ in range(glyph_slots.CLASSES)]
        for grey, labels in pairs:
            with optim.computing("cpu"):
                features = tower.patch_features(vision, tower.normalise(grey[None]))
                probabilities = head(features)[0].float().softmax(-1)
            truth = labels.flatten(0, 1)
            inked = (truth > 0).any(1)  # empty slots count only beside print
            for c, belief in zip(truth[inked].flatten().tolist(), probabilities[inked].flatten(0, 1), strict=True):
                if c >= 0 and len(found[c]) < most:
                    found[c].append(belief)
        certain = torch.eye(glyph_slots.CLASSES)
        rows = [torch.stack(row) if row else certain[c : c + 1] for c, row in enumerate(found)]
        return cls(torch.stack([row[torch.randint(len(row), (most,))] for row in rows]))

    def sample(self, tokens: torch.Tensor, quality: float) -> torch.Tensor:
        """Beliefs [n, 12, CLASSES] about classes [n, 12]: the share `quality` of the weight goes to the truth."""
        tokens = tokens.clamp(min=0)
        drawn = self.bank[tokens, torch.randint(self.bank.shape[1], tokens.shape)]
        certain = nn.functional.one_hot(tokens, glyph_slots.CLASSES).float()
        empty = (tokens == glyph_slots.NONE).all(1)[:, None, None]
        return torch.where(empty, certain, (1 - quality) * drawn + quality * certain)
