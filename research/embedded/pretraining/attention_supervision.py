"""Where to look: while the language model learns to read, some of its heads are told which visual token comes next.

Copying is found by gradient descent only after many steps, since nothing is gained by looking at the right place until
what lies there is also carried to the output. The place of every character is known here, so it is taught directly:
from the second layer on, two heads of each layer learn to attend, while predicting a character, to the visual token
that shows it, and a linear reading of the layer's output to name the slot within that token. After guided alignment of
attention in translation (Chen et al., 2016, arXiv 1607.01628). The model itself stays as it is; what is added to it is
dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from pretraining import glyph_slots
from pretraining.pages import Page

SLOTS = 4 * glyph_slots.SLOTS  # of a visual token
MOST = 3  # places of one character that count: a text may stand on the page more than once


def answer_places(page: Page, answer: str) -> np.ndarray:
    """Places [characters, MOST] (visual token * 12 + slot) an answer was copied from; -1 where it was not."""
    return places_in("\n".join(page.lines), text_places(page.places), answer)


def places_in(text: str, known: np.ndarray, answer: str) -> np.ndarray:
    """Places [characters, MOST] an answer was copied from, where `known` holds those of the text's characters."""
    places = np.full((len(answer), MOST), -1)
    for start, piece in copied_pieces(answer):
        at, number = _find(text, piece, 0), 0
        while at >= 0 and number < MOST:
            places[start : start + len(piece), number] = known[at : at + len(piece)]
            at, number = _find(text, piece, at + 1), number + 1
    return places


def text_places(places: Sequence[np.ndarray]) -> np.ndarray:
    """The places of lines' characters to those of the lines joined by line ends, which have none."""
    return np.concatenate([np.append(line, -1) for line in places])[:-1]


def _find(text: str, piece: str, start: int) -> int:
    at = text.find(piece, start)
    return at if at >= 0 else text.replace("\n", " ").find(piece, start)


def copied_pieces(answer: str) -> list[tuple[int, str]]:
    """Parts of an answer that stand on the page, and where they begin in it: a JSON object's values, or all of it."""
    try:
        fields = json.loads(answer)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return [(0, answer)] if answer else []
    pieces, at = [], 0
    for value in map(str, fields.values()):
        written = json.dumps(value, ensure_ascii=False)
        at = answer.index(written, at)
        if value and len(written) == len(value) + 2:  # an escape would shift what follows it
            pieces.append((at + 1, value))
        at += len(written)
    return pieces


class Guide(nn.Module):
    """Listens to a language model's layers and says how far its guided heads are from where they should look."""

    def __init__(self, language: nn.Module, heads: int = 2, slots: int = SLOTS) -> None:
        super().__init__()
        config = language.config
        self.slots = slots
        self.heads, self.size = heads, config.hidden_size // config.num_attention_heads
        self.layers = list(range(1, config.num_hidden_layers))
        self.slot_names = nn.ModuleList(nn.Linear(config.hidden_size, slots) for _ in self.layers)
        self.heard: dict[tuple[int, str], torch.Tensor] = {}
        self.rotary = [language.rotary_emb]  # in a list: not a part of this module
        for layer in self.layers:
            attention = language.layers[layer].self_attn
            attention.q_proj.register_forward_hook(self._listen(layer, "query"))
            attention.k_proj.register_forward_hook(self._listen(layer, "key"))
            language.layers[layer].register_forward_hook(self._listen(layer, "output"))

    def _listen(self, layer: int, what: str):
        def keep(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
            self.heard[layer, what] = output

        return keep

    def forward(self, places: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Losses of looking and of naming the slot (nats, mean over layers), and the share of looks that land in the
        layer that looks best.

        `places` [batch, length, MOST] says at each position where the *next* character is shown (-1: unknown), `first`
        is the position of the first visual token.
        """
        some = self.heard[self.layers[0], "query"]
        positions = torch.arange(places.shape[1], device=places.device)[None]
        cosine, sine = self.rotary[0](some, positions)
        rows = [(row, (places[row] >= 0).any(-1).nonzero().flatten()) for row in range(len(places))]
        rows = [(row, asked) for row, asked in rows if len(asked)]
        looks, names, landed = [], [], []
        for index, layer in enumerate(self.layers):
            query, key = (
                self.heard[layer, what].unflatten(-1, (-1, self.size))[:, :, : self.heads].transpose(1, 2)
                for what in ("query", "key")
            )
            query, key = apply_rotary_pos_emb(query, key, cosine, sine)
            named = self.slot_names[index](self.heard[layer, "output"]).float().log_softmax(-1)
            for row, asked in rows:
                wanted = places[row, asked]  # [n, MOST]
                known = wanted >= 0
                scores = query[row][:, asked] @ key[row].mT * self.size**-0.5  # [heads, n, length]
                scores = scores.float().masked_fill(positions > asked[:, None], -torch.inf).log_softmax(-1)
                token = (wanted.clamp(min=0) // self.slots + first).expand(self.heads, -1, -1)
                found = scores.gather(-1, token).masked_fill(~known, -torch.inf)
                same = _repeated(token[0], known)  # two places in one token are one look
                looks.append(-found.masked_fill(same, -torch.inf).logsumexp(-1).flatten())
                landed.append((found.detach().exp().amax(-1) > 0.5).float().mean())
                slot = wanted.clamp(min=0) % self.slots
                chosen = named[row, asked].gather(-1, slot).masked_fill(~known | _repeated(slot, known), -torch.inf)
                names.append(-chosen.logsumexp(-1))
        self.heard.clear()
        share = torch.stack(landed).view(len(self.layers), -1).mean(1).max()
        return torch.cat(looks).mean(), torch.cat(names).mean(), float(share)


def _repeated(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """[n, MOST]: whether the same known value stands further left in the row."""
    equal = (values[:, :, None] == values[:, None, :]) & known[:, None, :]
    return equal.tril(-1).any(-1)


BACK = (1, 2, 3, 4, 1, 16, 2, 15)  # distances the heads of the first layer look back; 16 tokens are a row of a tile


def look_back(language: nn.Module, back: Sequence[int] = BACK) -> None:
    """Make heads of a fresh model attend to a fixed distance back: all of the first layer, half of the second.

    In every further layer two do, one and two positions: there they carry where the characters before were shown, from
    which the guided heads of the layer after find the next.
    """
    heads = language.config.num_attention_heads
    for number, layer in enumerate(language.layers):
        for index in range(heads if number == 0 else heads // 2 if number == 1 else min(2, heads // 2)):
            look_back_by(language, layer.self_attn, heads - 1 - index, back[index % len(back)])


@torch.no_grad()
def look_back_by(
    language: nn.Module, attention: nn.Module, head: int, distance: int, strength: float = 5.0, pairs: int = 7
) -> None:
    """Make one head attend `distance` positions back.

    With rotary codes, equal biases of query and key, those of the key turned by d positions, score highest at
    distance d; the fastest `pairs` of channels tell neighbours apart.
    """
    config = language.config
    size = config.hidden_size // config.num_attention_heads
    half = size // 2
    turn = config.rope_parameters["rope_theta"] ** (-torch.arange(half).float() / half) * distance
    on = (torch.arange(half) < pairs).float() * strength
    own = slice(head * size, (head + 1) * size)
    attention.q_proj.bias[own] = torch.cat([on, torch.zeros(half)])
    attention.k_proj.bias[own] = torch.cat([on * turn.cos(), on * turn.sin()])
