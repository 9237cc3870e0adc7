"""PEFT as its own examples use it: an adapted model, a plain loop, AdamW; loss on the answers, SDPA attention."""

from __future__ import annotations

import patch_imports  # noqa: F401
import torch
from meter import open_job
from plain import encode, open_plain

job, meter = open_job()
model, processor = open_plain(job, "sdpa")
weights = [weight for weight in model.parameters() if weight.requires_grad]
optimizer = torch.optim.AdamW(weights, lr=job.rate, weight_decay=0.0)
rows, losses = job.read_rows(), []
model.train()
meter.watch(model)
meter.start()
for step in range(job.steps):
    chosen = rows[step * job.batch : (step + 1) * job.batch]
    batches = [encode(processor, chosen[at : at + job.micro], True) for at in range(0, len(chosen), job.micro)]
    total = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    summed = 0.0
    for batch in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.bf16):
            loss = model(**batch, num_items_in_batch=total).loss
        loss.backward()
        summed += loss.item()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(summed)
    meter.step(model, step + 1)
meter.finish(model, losses)
