"""The published receipt recipe on transformers' Trainer: eager attention, loss on every token, pictures seen each time.

Faithful to it: labels are the input (pictures' placeholders too), full-vocabulary logits, one sample a pass, the vision
tower run in every pass. Left out: NF4 (made for GPUs) and LoRA on the output head, which no peer here has.
"""

from __future__ import annotations

from typing import Any

from PIL import Image


def encode(processor: Any, rows: list[dict[str, str]], answer_only: bool = False) -> dict[str, Any]:
    """Right-padded inputs and labels of rows {image, prompt, answer}."""
    texts, masks = [], []
    for row in rows:
        user = [{"type": "image"}, {"type": "text", "text": row["prompt"]}]
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": row["answer"]}]
        texts.append(processor.apply_chat_template(turns, tokenize=False))
        asked = processor.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        masks.append((len(asked), texts[-1]))
    images = [[Image.open(row["image"]).convert("RGB")] for row in rows]
    batch = dict(processor(images=images, text=texts, padding=True, padding_side="right", return_tensors="pt"))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if answer_only:
        for number, (asked, text) in enumerate(masks):
            length = int(batch["attention_mask"][number].sum())
            answer = len(processor.tokenizer(text[asked:], add_special_tokens=False)["input_ids"])
            labels[number, : length - answer] = -100
            labels[number, length - 1 :] = -100  # the newline after the answer's end
    return {**batch, "labels": labels}


def open_plain(job: Any, attention: str) -> tuple[Any, Any]:
    """Model with LoRA on its language part, and processor."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(job.seed)
    dtype = torch.bfloat16 if job.bf16 else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(job.model, dtype=dtype, attn_implementation=attention)
    config = LoraConfig(r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, target_modules=job.target_pattern)
    return get_peft_model(model, config), AutoProcessor.from_pretrained(job.model)


def main() -> None:
    import patch_imports  # noqa: F401
    from meter import open_job
    from transformers import Trainer, TrainingArguments

    job, meter = open_job()
    model, processor = open_plain(job, "eager")
    arguments = TrainingArguments(
        output_dir=job.scratch,
        per_device_train_batch_size=job.micro,
        gradient_accumulation_steps=job.batch // job.micro,
        max_steps=job.steps,
        learning_rate=job.rate,
        lr_scheduler_type="constant",
        bf16=job.bf16,
        use_cpu=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(
        model,
        arguments,
        train_dataset=job.read_rows(),
        data_collator=lambda rows: encode(processor, rows),
        callbacks=[meter.callback()],
    ).train()


if __name__ == "__main__":
    main()
