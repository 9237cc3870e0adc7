"""The parts of gpu.py, which imports this file once everything is installed."""

from __future__ import annotations

import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import GenerationConfig, InternVLConfig, InternVLForConditionalGeneration

from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.device import peak_memory, seed_everything, watch_memory
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.generation import predict
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel, collate, encode, load_model
from mllm_tailor.models.bundled.build import build_processor, build_tokenizer, save
from mllm_tailor.recipe import Recipe, make_recipe
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task
from mllm_tailor.training import TrainingConfig, train

STEPS = 3  # the first one initialises kernels; the fastest of the others counts
CLOSE = 1e-3  # relative difference of float32 losses on two devices
BATCH = 4
FIELDS = {"company": "string", "date": "string", "total": "string"}
VOCABULARY = 92_553
# The sizes of InternVL2-2B (InternViT-300M and InternLM2-1.8B), and of a model of the same shape for `--tiny`.
SIZES = {
    False: {
        "vision": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        "text": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
        "tile": 448,
    },
    True: {
        "vision": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "text": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
        "tile": 56,
    },
}
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class Parts:
    """What is measured, on one device."""

    def __init__(self, work: Path, device: torch.device, *, tiny: bool) -> None:
        self.work, self.device, self.tiny = work, device, tiny
        self.model_folder = work / "model"
        self.number = 0

    def parity(self) -> dict[str, Any]:
        """Losses, logits and greedy replies of a small model in float32, on this device and on the CPU."""
        samples = make_samples(self.work / "parity", 6, (1, 2))
        folder = self.work / "small"
        build_model(folder, torch.device("cpu"), torch.float32, tiny=True)
        # Products in float32, not in the shorter TF32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        sides = [self._one_side(folder, samples, device) for device in (torch.device("cpu"), self.device)]
        (cpu_losses, cpu_logits, cpu_texts), (losses, logits, texts) = sides
        loss_distance = max(abs(a - b) / abs(b) for a, b in zip(losses, cpu_losses, strict=True))
        logit_distance = float((logits - cpu_logits).abs().max() / cpu_logits.abs().max())
        return {
            "losses": losses,
            "loss_distance": loss_distance,
            "logit_distance": logit_distance,
            "equal_replies": sum(a == b for a, b in zip(texts, cpu_texts, strict=True)) / len(texts),
            "passed": loss_distance < CLOSE and logit_distance < CLOSE,
        }

    def _one_side(
        self, folder: Path, samples: list[Sample], device: torch.device
    ) -> tuple[list[float], Tensor, list[str]]:
        recipe = make_settings("lora", steps=4, dtype="float32", tiles=2)
        model = self._open(folder, recipe, device)
        inputs = {name: part.to(device) for name, part in inputs_of(model, samples[:2]).items()}
        inputs.pop("labels")
        with torch.no_grad():
            logits = model.model(**inputs).logits.float().cpu()
        texts = [
            reply.text for reply in predict(model, open_task("extract", FIELDS), samples, Predict(max_new_tokens=24))
        ]
        return self._train(model, samples, recipe), logits, texts

    def make_model(self) -> dict[str, Any]:
        """The large model on disk, as a downloaded one would be."""
        dtype = torch.float32 if self.tiny else torch.bfloat16
        return {"weights": build_model(self.model_folder, self.device, dtype, tiny=self.tiny)}

    def step(self, method: str, tiles: int) -> dict[str, Any]:
        """Our training steps of documents with so many tiles, the overview included."""
        samples = make_samples(self.work / f"tiles-{tiles}", BATCH, shape(tiles))
        recipe = make_settings(method, steps=STEPS, dtype="auto", tiles=tiles - 1)
        model = self._open(self.model_folder, recipe, self.device)
        with watch_memory(self.device) as memory:
            losses = self._train(model, samples, recipe)
        rows = [json.loads(line) for line in (self._folder() / "log.jsonl").read_text().splitlines()]
        times = np.diff([0.0, *(row["seconds"] for row in rows if "loss" in row)])
        tokens = sum(encode(as_conversation(sample), model).length for sample in samples)
        return outcome(float(min(times[1:])), memory.before + memory.rise, tokens, losses, len(samples))

    def plain_step(self, method: str, tiles: int) -> dict[str, Any]:
        """The same by PEFT's own means: loss of the whole vocabulary, pictures seen in each step, one sample a pass."""
        samples = make_samples(self.work / f"tiles-{tiles}", BATCH, shape(tiles))
        recipe = make_settings(method, steps=STEPS, dtype="auto", tiles=tiles - 1)
        opened = self._open(self.model_folder, recipe, self.device, apply=False)
        network = opened.model
        if method == "qlora":
            network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
        network = get_peft_model(network, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS))
        network.train()
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-4)
        losses, times = [], []
        with watch_memory(self.device) as memory:
            for _ in range(STEPS):
                self._wait()
                started, total = time.perf_counter(), 0.0
                for sample in samples:
                    batch = {name: part.to(self.device) for name, part in inputs_of(opened, [sample]).items()}
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=not self.tiny):
                        loss = network(**batch).loss / len(samples)
                    loss.backward()
                    total += loss.item()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self._wait()
                times.append(time.perf_counter() - started)
                losses.append(total)
        tokens = sum(encode(as_conversation(sample), opened).length for sample in samples)
        return outcome(min(times[1:]), memory.before + memory.rise, tokens, losses, len(samples))

    def predict(self) -> dict[str, Any]:
        """Documents a second of the large model, constrained, sixteen side by side."""
        count = 4 if self.tiny else 32
        samples = make_samples(self.work / "predict", count, shape(3))
        model = self._open(self.model_folder, make_settings("lora", steps=1, dtype="auto", tiles=2), self.device)
        settings = Predict(batch_size=16, max_new_tokens=64)
        task = open_task("extract", FIELDS)
        predict(model, task, samples[:2], settings)  # initialises kernels
        self._wait()
        started = time.perf_counter()
        replies = predict(model, task, samples, settings)
        self._wait()
        seconds = time.perf_counter() - started
        return {
            "samples_per_second": count / seconds,
            "peak_bytes": peak_memory(self.device),
            "passed": not any(reply.problem for reply in replies if not reply.cut),
        }

    def pretraining(self) -> dict[str, Any]:
        """All weights of the embedded model (or of `tiny`) trained, from drawn pictures."""
        count = 4 if self.tiny else 64
        samples = make_samples(self.work / "pretraining", count, (1, 2))
        recipe = make_settings("full", steps=STEPS, dtype="auto", tiles=2, batch_size=count)
        model = self._open(Path("tiny" if self.tiny else "embedded"), recipe, self.device)
        losses = self._train(model, samples, recipe)
        rows = [json.loads(line) for line in (self._folder() / "log.jsonl").read_text().splitlines()]
        fastest = max((row for row in rows[1:] if "loss" in row), key=lambda row: row["samples_per_second"])
        return {
            "samples_per_second": fastest["samples_per_second"],
            "tokens_per_second": fastest["tokens_per_second"],
            "losses": losses,
            "passed": losses[-1] < losses[0],
        }

    def _open(self, folder: Path, recipe: Recipe, device: torch.device, *, apply: bool = True) -> LoadedModel:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        method = make_method(recipe)
        path = str(folder) if folder.exists() else folder.name
        model = load_model(
            path,
            dtype=recipe.model.dtype,
            device=device,
            quantize=method.quantize,
            quantize_skip=method.quantize_skip,
        )
        model = replace(model, tiles=recipe.model.tiles or model.tiles)
        if apply:
            seed_everything(0)
            method.apply(model)
        return model

    def _train(self, model: LoadedModel, samples: list[Sample], recipe: Recipe) -> list[float]:
        self.number += 1
        conversations = [as_conversation(sample) for sample in samples]
        return train(model, conversations, TrainingConfig.from_recipe(recipe), self._folder()).losses

    def _folder(self) -> Path:
        return self.work / f"run-{self.number}"

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def outcome(seconds: float, peak: int, tokens: int, losses: list[float], count: int) -> dict[str, Any]:
    """A row of the report."""
    return {
        "seconds_per_step": seconds,
        "samples_per_second": count / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_sample": tokens / count,
        "peak_bytes": peak,
        "losses": losses,
        "passed": all(np.isfinite(losses)),
    }


def make_settings(method: str, *, steps: int, dtype: str, tiles: int, batch_size: int = BATCH) -> Recipe:
    """A recipe without data."""
    parts = ["vision", "projector", "language", "head"] if method == "full" else ["language"]
    rank = {} if method == "full" else {"rank": 16}
    return make_recipe(
        {
            "data": "unused",
            "task": {"extract": FIELDS},
            "model": {"path": "unused", "dtype": dtype, "tiles": {"max": tiles}},
            "method": {"name": method, "parts": parts, **rank},
            "train": {"steps": steps, "batch_size": batch_size, "learning_rate": 1e-4, "warmup_ratio": 0.0},
        }
    )


def shape(tiles: int) -> tuple[int, int]:
    """Columns and rows of a picture that is cut into so many tiles, the overview included."""
    return {3: (1, 2), 7: (2, 3)}[tiles]


def make_samples(folder: Path, count: int, proportions: tuple[int, int]) -> list[Sample]:
    """Drawn receipts of one shape."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(count):
        picture = Image.new("RGB", (448 * proportions[0], 448 * proportions[1]), "white")
        labels = {"company": f"SHOP {number}", "date": f"2024-01-{number % 28 + 1:02}", "total": f"{number}.90"}
        for line, text in enumerate(labels.values()):
            ImageDraw.Draw(picture).text((20, 40 + 40 * line), text, fill="black")
        picture.save(folder / f"{number}.png")
        media = (Media("image", folder / f"{number}.png"),)
        samples.append(Sample(str(number), media, "Read the receipt as JSON.", json.dumps(labels)))
    return samples


def inputs_of(model: LoadedModel, samples: list[Sample]) -> dict[str, Tensor]:
    """A padded batch on the CPU."""
    return collate([encode(as_conversation(sample), model) for sample in samples], model, side="right")


def build_model(folder: Path, device: torch.device, dtype: torch.dtype, *, tiny: bool) -> int:
    """Write a model of random weights; returns their number. Its tokens are bytes, as those of the embedded model."""
    sizes: Any = SIZES[tiny]
    tokenizer = build_tokenizer()
    vision = {**sizes["vision"], "image_size": [sizes["tile"]] * 2, "patch_size": [14, 14], "attention_bias": True}
    text = {
        **sizes["text"],
        "model_type": "qwen2",
        "vocab_size": len(tokenizer) if tiny else VOCABULARY,
        "num_key_value_heads": sizes["text"]["num_attention_heads"] // 2,
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=(sizes["tile"] // 28) ** 2,
        tie_word_embeddings=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with device:
            model = InternVLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    save(model, build_processor(tokenizer, sizes["tile"], max_tiles=6), folder)
    return sum(weight.numel() for weight in model.parameters())
