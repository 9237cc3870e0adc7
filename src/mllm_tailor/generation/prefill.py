"""Prefill: one forward pass over prompts, whose keys and values every reply continues from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mllm_tailor.core.device import CPU_TOKENS, upload
from mllm_tailor.generation.kv_cache import KVCache, compact, cross_keys, empty_cache, positions_of
from mllm_tailor.generation.shared_prefix_attention import Prefix, shares_prefixes
from mllm_tailor.models import Encoded, LoadedModel, collate
from mllm_tailor.models.inputs.empty_image import CROSS_MASK, last_cross_masks, with_empty_image
from mllm_tailor.models.patches.last_layer import cache_name, last_layer_from
from mllm_tailor.models.vision_cache import VisionEncoder, VisionFeatureCache


@dataclass(frozen=True)
class PrefillResult:
    """Prompts that were read, in their order."""

    kv: KVCache
    ids: Tensor  # (prompts, columns), left-padded
    logits: Tensor  # (prompts, 1, vocabulary) after the last token
    shifts: list[int]  # of the positions that follow, against the length


class Prefill:
    """Reads prompts into a KV cache."""

    def __init__(self, model: LoadedModel, cache: VisionFeatureCache | None) -> None:
        self.model = model
        self.cache_name = cache_name(model.model.forward)
        self.vision = VisionEncoder(model, cache)
        self.shares_prefixes = shares_prefixes(model)
        config = model.model.config
        self.cross_layers = frozenset(getattr(config.get_text_config(), "cross_attention_layers", None) or ())
        self.keys_per_image = 1  # in the cross-attention layers, known after the first read
        names = ("image_token_id", "video_token_id", "audio_token_id")
        self.media_ids = {number for name in names if (number := getattr(config, name, None)) is not None}
        # Models with three-part positions (Qwen2-VL, arXiv 2409.12191) count an image's tokens differently from text.
        self.rotary = next((part for part in model.model.modules() if hasattr(part, "rope_deltas")), None)

    def read(self, prompts: Sequence[Encoded]) -> PrefillResult:
        """Read prompts into one cache.

        On a CPU padding and masks cost time, so only prompts of one length are read together there.
        """
        if self.model.device.type != "cpu" or not self.model.family.tiled:
            return self._read(prompts)
        groups = group_by_length([prompt.length for prompt in prompts])
        results = [self._read([prompts[index] for index in group]) for group in groups]
        if len(results) == 1 and groups[0] == list(range(len(prompts))):
            return results[0]
        order = [index for group in groups for index in group]
        rows = [(result.kv, row) for result in results for row in range(result.kv.rows)]
        position = sorted(range(len(order)), key=order.__getitem__)  # of each prompt in `rows`
        width = max(prompt.length for prompt in prompts)
        ids = torch.cat([pad(part.ids, (width - part.ids.shape[1], 0), value=self.model.pad_id) for part in results])
        logits = torch.cat([part.logits for part in results])
        kv = compact([(rows[index][0], [rows[index][1]]) for index in position])
        return PrefillResult(kv, ids[position], logits[position], [0] * len(prompts))

    def read_prefixes(self, prompts: Sequence[Encoded]) -> tuple[list[Prefix], Tensor, Tensor]:
        """Read prompts that rows will share: their prefixes, last ids (prompts, 1), and the logits after these."""
        results: dict[int, tuple[Prefix, Tensor, Tensor]] = {}
        for group in group_by_length([prompt.length for prompt in prompts]):
            result = self._read([prompts[index] for index in group])
            for row, index in enumerate(group):
                results[index] = Prefix.of(result.kv, row), result.ids[row, -1:], result.logits[row]
        prefixes, ids, logits = zip(*(results[index] for index in range(len(prompts))), strict=True)
        return list(prefixes), torch.stack(ids), torch.stack(logits)

    def cross_attention_inputs(self, prompts: Sequence[Encoded], kv: KVCache, width: int) -> dict[str, Tensor]:
        """For models with cross-attention to images: new tokens attend to what the prompt's last token did."""
        if not self.cross_layers:
            return {}
        masks = last_cross_masks(prompts, self.model, images=cross_keys(kv) // self.keys_per_image)
        return {CROSS_MASK: upload(masks.expand(-1, width, -1, -1), self.model.device)}

    def _read(self, prompts: Sequence[Encoded]) -> PrefillResult:
        """Read prompts in one forward pass; tiled prompts of one length need no mask."""
        model = self.model
        if self.cross_layers:
            prompts = [with_empty_image(prompt, model) for prompt in prompts]
        batch = collate(prompts, model, side="left")
        del batch["labels"]
        features = self.vision.outputs(prompts)
        if features is not None:
            del batch["pixel_values"]
        mask, width = batch["attention_mask"], batch["input_ids"].shape[1]
        batch = {name: upload(tensor, model.device) for name, tensor in batch.items()}
        if self.rotary is None:
            batch["position_ids"] = positions_of(batch["attention_mask"])
        if model.family.tiled and all(prompt.length == width for prompt in prompts):
            del batch["attention_mask"]
        cache = empty_cache()
        extra = {} if features is None else {"mm_encoder_outputs": features}
        with last_layer_from(model.model, width - 1, width):
            output = model.model(**batch, **extra, **{self.cache_name: cache}, use_cache=True, logits_to_keep=1)
        shifts = [0] * len(prompts) if self.rotary is None else self.rotary.rope_deltas.flatten().tolist()
        kv = KVCache(cache, mask, self.cross_layers)
        if self.cross_layers:
            self.keys_per_image = cross_keys(kv) // batch[CROSS_MASK].shape[2]
        return PrefillResult(kv, batch["input_ids"], output.logits, shifts)


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of equal lengths, at most CPU_TOKENS tokens of them.

    >>> group_by_length([900, 40, 900, 40])
    [[0], [2], [1, 3]]
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        last = groups[-1] if groups else None
        if last and lengths[last[0]] == lengths[index] and (len(last) + 1) * lengths[index] <= CPU_TOKENS:
            last.append(index)
        else:
            groups.append([index])
    return groups
