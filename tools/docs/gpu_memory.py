"""How much GPU memory a training needs, by model: computed from published shapes, for the tables of both READMEs.

    python tools/docs/gpu_memory.py

Weights of the base: linear layers of the language model at 4.127 bits (NF4 with double quantisation, measured by
benchmarks/methods.py) or 16 bits; the vision tower, embeddings and head at 16 bits. LoRA of rank 64 on all linear
layers of the language model: 16 bytes a weight (float32 weight, gradient and two moments). Activations of one sample
of 2,048 tokens, recomputed layer by layer: its input to each layer, 34 values a token and channel inside one layer
(Korthikanti et al. 2022, 2205.05198, section 4.1, without the quadratic term, which SDPA does not store) and two
float32 rows of logits for 256 answer tokens. A tenth is added for the allocator. Computed, not measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

READMES = [Path(__file__).resolve().parents[2] / name for name in ("README.md", "README.zh-CN.md")]
BEGIN, END = "<!-- gpu-memory -->\n", "<!-- /gpu-memory -->"
GIB = 2**30
NF4_BITS = 4.127
RANK, TOKENS, ANSWER = 64, 2048, 256
CARDS = (6, 8, 12, 16, 24, 32, 48, 80, 141)  # GiB


@dataclass(frozen=True)
class Shape:
    """A language model of the Qwen2.5 kind beside a vision tower, as their config.json files state them."""

    name: str
    vision: float  # weights of the tower and projector
    layers: int
    width: int
    hidden: int  # of the gated MLP
    heads: int
    key_heads: int
    vocabulary: int = 151_674
    tied: bool = False

    @property
    def linear(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each linear layer of one block."""
        keys = self.width // self.heads * self.key_heads
        attention = ((self.width, self.width), (self.width, keys), (self.width, keys), (self.width, self.width))
        return (*attention, (self.width, self.hidden), (self.width, self.hidden), (self.hidden, self.width))

    def gib(self, bits: float) -> float:
        """Peak memory of a LoRA training in GiB."""
        blocks = self.layers * sum(inputs * outputs for inputs, outputs in self.linear)
        embeddings = self.vocabulary * self.width * (1 if self.tied else 2)
        adapter = self.layers * sum(RANK * (inputs + outputs) for inputs, outputs in self.linear)
        weights = blocks * bits / 8 + 2 * (self.vision + embeddings) + 16 * adapter
        activations = TOKENS * self.width * (2 * self.layers + 34) + 2 * 4 * ANSWER * self.vocabulary
        return 1.1 * (weights + activations) / GIB


MODELS = (
    Shape("InternVL3-1B, InternVL2.5-1B", 0.31e9, 24, 896, 4864, 14, 2, tied=True),
    Shape("InternVL3-2B, Mini-InternVL-2B", 0.32e9, 28, 1536, 8960, 12, 2, tied=True),
    Shape("InternVL3-8B", 0.34e9, 28, 3584, 18944, 28, 4),
    Shape("InternVL3-14B", 0.36e9, 48, 5120, 13824, 40, 8),
    Shape("InternVL3-38B", 5.6e9, 64, 5120, 27648, 40, 8),
    Shape("InternVL3-78B", 5.7e9, 80, 8192, 29568, 64, 8),
)


def card(gib: float) -> str:
    """The smallest usual GPU that holds so much."""
    fitting = next((size for size in CARDS if size >= gib + 0.5), None)  # half a GiB for CUDA itself
    return f"{gib:.1f} GiB ({fitting} GB card)" if fitting else f"{gib:.0f} GiB (several GPUs)"


def table() -> str:
    """The table in Markdown."""
    lines = ["| model | QLoRA, rank 64 | LoRA, rank 64, bf16 |", "|---|---|---|"]
    lines += [f"| {shape.name} | {card(shape.gib(NF4_BITS))} | {card(shape.gib(16))} |" for shape in MODELS]
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """A README's text with the table of now between its markers."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{table()}{END}{tail}"


if __name__ == "__main__":
    for readme in READMES:
        readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
