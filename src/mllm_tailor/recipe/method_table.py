"""Every method by name, for recipes and lists: no torch here. The code is that of `methods`."""

from __future__ import annotations

from mllm_tailor.core.registry import Entry, Registry

METHODS = Registry(
    "method",
    {
        "lora": Entry("mllm_tailor.methods.lora:Lora", "low-rank updates beside frozen linear layers"),
        "qlora": Entry(
            "mllm_tailor.methods.lora:Qlora", "lora on a base quantised to 4 bits (NF4, double quantisation)"
        ),
        "rslora": Entry("mllm_tailor.methods.lora_variants:Rslora", "lora scaled by alpha/sqrt(rank), for high ranks"),
        "dora": Entry("mllm_tailor.methods.lora_variants:Dora", "lora of the direction; lengths learned separately"),
        "pissa": Entry("mllm_tailor.methods.lora_variants:Pissa", "lora that starts from the largest singular vectors"),
        "lora_plus": Entry(
            "mllm_tailor.methods.lora_variants:LoraPlus", "lora with a higher learning rate for B than for A"
        ),
        "lora_fa": Entry("mllm_tailor.methods.lora_variants:LoraFa", "lora with a frozen A; fewer activations kept"),
        "dylora": Entry("mllm_tailor.methods.dylora:Dylora", "lora that can be cut to any lower rank afterwards"),
        "adalora": Entry("mllm_tailor.methods.adalora:Adalora", "lora whose rank moves to the layers that need it"),
        "bottleneck": Entry(
            "mllm_tailor.methods.bottleneck:Bottleneck", "small networks before, parallel to or after the MLP"
        ),
        "ia3": Entry("mllm_tailor.methods.ia3_vera_oft:Ia3", "learned factors on keys, values and MLP; few weights"),
        "vera": Entry("mllm_tailor.methods.ia3_vera_oft:Vera", "learned vectors between shared random matrices"),
        "oft": Entry("mllm_tailor.methods.ia3_vera_oft:Oft", "learned rotations of the inputs"),
        "prefix": Entry("mllm_tailor.methods.prefix:Prefix", "learned keys and values before those of every layer"),
        "prompt": Entry("mllm_tailor.methods.prefix:Prompt", "learned embeddings before the text"),
        "full": Entry("mllm_tailor.methods.full:Full", "every weight of the chosen parts"),
        "lisa": Entry("mllm_tailor.methods.full:Lisa", "full, a few random layers at a time"),
        "lomo": Entry("mllm_tailor.methods.full:Lomo", "full, updated inside the backward pass; no optimizer state"),
        "adalomo": Entry("mllm_tailor.methods.full:AdaLomo", "lomo with adaptive learning rates"),
        "mezo": Entry("mllm_tailor.methods.full:Mezo", "full, without backward pass; the memory of inference"),
        "galore": Entry("mllm_tailor.methods.full:Galore", "full, Adam's state in a few directions of each gradient"),
        "apollo": Entry(
            "mllm_tailor.methods.full:Apollo", "full, Adam's learning rates estimated in random directions"
        ),
        "norms": Entry("mllm_tailor.methods.full:Norms", "only the scales and shifts of normalisation layers"),
        "freeze": Entry("mllm_tailor.methods.full:Freeze", "nothing of this part (for use in `parts`)"),
    },
    group="mllm_tailor.methods",
)
