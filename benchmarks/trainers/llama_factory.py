"""LLaMA-Factory, with the settings that keep it from shrinking pictures, adding a system text or recomputing."""

from __future__ import annotations

import json
from pathlib import Path

import patch_imports

patch_imports.patch_torchaudio()

from llamafactory.train.tuner import run_exp  # noqa: E402
from meter import open_job  # noqa: E402

job, meter = open_job()
folder = Path(job.scratch)
folder.mkdir(parents=True, exist_ok=True)
rows = [
    {
        "messages": [
            {"role": "user", "content": "<image>" + row["prompt"]},
            {"role": "assistant", "content": row["answer"]},
        ],
        "images": [row["image"]],
    }
    for row in job.read_rows()
]
tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
columns = {"messages": "messages", "images": "images"}
info = {"receipts": {"file_name": "receipts.json", "formatting": "sharegpt", "columns": columns, "tags": tags}}
(folder / "receipts.json").write_text(json.dumps(rows))
(folder / "dataset_info.json").write_text(json.dumps(info))
run_exp(
    {
        "model_name_or_path": job.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": job.rank,
        "lora_alpha": job.alpha,
        "lora_dropout": 0.0,
        "lora_target": ",".join(job.targets),
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": True,
        "dataset_dir": str(folder),
        "dataset": "receipts",
        "template": "intern_vl",
        "default_system": "",
        "cutoff_len": 8192,
        "image_max_pixels": 100_000_000,
        "crop_to_patches": False,  # True means up to 12 tiles, whatever the checkpoint says
        "overwrite_cache": True,
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
        "disable_shuffling": True,
        "output_dir": str(folder / "out"),
        "save_strategy": "no",
        "logging_steps": 1,
        "plot_loss": False,
        "report_to": "none",
        "per_device_train_batch_size": job.micro,
        "gradient_accumulation_steps": job.batch // job.micro,
        "max_steps": job.steps,
        "learning_rate": job.rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "seed": job.seed,
        "use_cpu": True,
        "bf16": job.bf16,
        "disable_gradient_checkpointing": True,
        "flash_attn": "sdpa",
    },
    callbacks=[meter.callback()],
)
