"""The whole model, the symbol embedding that stands in for pixels, prompts as the product writes them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationConfig, InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

from mllm_tailor.models.build import build_tokenizer
from pretraining import slots, tower

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


def build_model(
    width: int = 256, layers: int = 6, heads: int = 8, vision: dict[str, int] | None = None
) -> InternVLForConditionalGeneration:
    """A random model; its parts are trained one after the other."""
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


class SymbolEmbedding(nn.Module):
    """What the projector will have to produce, from the characters themselves instead of their pixels.

    A visual token is the sum over its 12 slots of the language model's own embedding of the character, turned by a
    matrix of the slot (random orthogonal at first), plus the token's row and column in its tile.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        count = 4 * slots.SLOTS
        self.slot_turns = nn.Parameter(
            torch.stack([torch.linalg.qr(torch.randn(width, width))[0] for _ in range(count)])
        )
        self.row_embed = nn.Parameter(torch.randn(SIDE, width) * 0.05)
        self.column_embed = nn.Parameter(torch.randn(SIDE, width) * 0.05)
        ids = [encode(slots.character_of(index))[0] if index else 0 for index in range(slots.CLASSES)]
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    def forward(
        self,
        tokens: torch.Tensor,
        embedding: nn.Embedding,
        keep: torch.Tensor | None = None,
        first: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Classes and weights `keep` [n, 12], places in the page `first` [n], to [n, width]."""
        tokens = tokens.clamp(min=0)
        weight = (tokens != slots.NONE).float()
        if keep is not None:
            weight = weight * keep
        letters = embedding(self.ids[tokens]) * weight.unsqueeze(-1)  # [n, 12, width]
        place = (first if first is not None else torch.arange(len(tokens), device=tokens.device)) % VISUAL
        return (
            torch.einsum("nkd,kde->ne", letters, self.slot_turns)
            + self.row_embed[place // SIDE]
            + self.column_embed[place % SIDE]
        )


def spoil(tokens: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mistake and miss some characters as a tower would: classes and weights [n, 12]."""
    wrong = torch.rand(tokens.shape) < rate
    tokens = torch.where(wrong & (tokens > 0), torch.randint(1, slots.CLASSES, tokens.shape), tokens)
    keep = 1 - 0.5 * torch.rand(tokens.shape) * (torch.rand(tokens.shape) < 5 * rate)
    return tokens, keep * (torch.rand(tokens.shape) >= 0.3 * rate)
