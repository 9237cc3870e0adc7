"""ms-swift, adapting the language model alone, with AdamW's usual second moment and no recomputing."""

from __future__ import annotations

import json
from pathlib import Path

import patch_imports  # noqa: F401
from meter import open_job
from swift.pipelines import SwiftSft
from transformers import Trainer

job, meter = open_job()
folder = Path(job.scratch)
folder.mkdir(parents=True, exist_ok=True)
with (folder / "receipts.jsonl").open("w", encoding="utf-8") as file:
    for row in job.read_rows():
        messages = [
            {"role": "user", "content": "<image>" + row["prompt"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        file.write(json.dumps({"messages": messages, "images": [row["image"]]}) + "\n")

train = Trainer.train


def watched(self, *arguments, **options):
    """Swift makes its trainer itself; the clock is added when it starts."""
    self.add_callback(meter.callback())
    return train(self, *arguments, **options)


Trainer.train = watched
settings = {
    "model": job.model,
    "model_type": "internvl",
    "template": "internvl_hf",
    "dataset": folder / "receipts.jsonl",
    "tuner_type": "lora",
    "lora_rank": job.rank,
    "lora_alpha": job.alpha,
    "lora_dropout": 0,
    "target_regex": job.target_pattern,
    "freeze_vit": "true",
    "freeze_aligner": "true",
    "torch_dtype": job.precision,
    "bf16": str(job.bf16).lower(),
    "fp16": "false",
    "use_cpu": "true",
    "max_steps": job.steps,
    "per_device_train_batch_size": job.micro,
    "gradient_accumulation_steps": job.batch // job.micro,
    "learning_rate": job.rate,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0,
    "optim": "adamw_torch",
    "adam_beta2": 0.999,
    "weight_decay": 0,
    "gradient_checkpointing": "false",
    "max_length": 8192,
    "system": "",
    "split_dataset_ratio": 0,
    "dataset_shuffle": "false",
    "train_dataloader_shuffle": "false",
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "dataloader_num_workers": 0,
    "dataset_num_proc": 1,
    "load_from_cache_file": "false",
    "seed": job.seed,
    "attn_impl": "sdpa",
    "output_dir": folder / "out",
}
SwiftSft([text for name, value in settings.items() for text in (f"--{name}", str(value))]).main()
