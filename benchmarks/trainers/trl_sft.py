"""TRL's SFTTrainer: loss on the answers, nothing cut off, no recomputing; its other settings as they come."""

from __future__ import annotations

import patch_imports  # noqa: F401
from datasets import Dataset, Image, List
from meter import open_job
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

job, meter = open_job()
rows = [
    {
        "images": [row["image"]],
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["answer"]},
        ],
    }
    for row in job.read_rows()
]
SFTTrainer(
    job.model,
    args=SFTConfig(
        output_dir=job.scratch,
        per_device_train_batch_size=job.micro,
        gradient_accumulation_steps=job.batch // job.micro,
        max_steps=job.steps,
        learning_rate=job.rate,
        lr_scheduler_type="constant",
        bf16=job.bf16,
        use_cpu=True,
        gradient_checkpointing=False,
        max_length=None,
        assistant_only_loss=True,
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": job.precision},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=job.seed,
    ),
    train_dataset=Dataset.from_list(rows).cast_column("images", List(Image())),
    peft_config=LoraConfig(r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, target_modules=job.target_pattern),
    callbacks=[meter.callback()],
).train()
