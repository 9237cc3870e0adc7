"""Every method by name."""

from __future__ import annotations

from mllm_tailor.core.registry import Entry, Registry

METHODS = Registry(
    "method",
    {
        "lora": Entry("mllm_tailor.methods.lora:Lora", "low-rank updates beside frozen linear layers"),
        "qlora": Entry(
            "mllm_tailor.methods.lora:Qlora", "lora on a base packed into 4 bits (NF4, double quantisation)"
        ),
        "full": Entry("mllm_tailor.methods.weights:Full", "every weight of the chosen parts"),
        "norms": Entry("mllm_tailor.methods.weights:Norms", "only the scales and shifts of normalisation layers"),
        "freeze": Entry("mllm_tailor.methods.weights:Freeze", "nothing of this part (for use under `parts`)"),
    },
)
