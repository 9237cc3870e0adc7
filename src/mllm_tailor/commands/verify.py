"""`tailor verify`: whether every form of the tuned model gives the same replies, and others than the base."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.terminal import Table
from mllm_tailor.methods import merge
from mllm_tailor.models import LoadedModel, collate, encode, generate, save_model
from mllm_tailor.run.data_changes import unchanged
from mllm_tailor.run.data_record import read_held_out
from mllm_tailor.run.predict import open_base, open_for_training, open_tuned
from mllm_tailor.run.resolve import ResolvedRun, resolve_here
from mllm_tailor.run.run_dir import open_run

REPLY_TOKENS = 128  # of a reply that is compared, at most


@dataclass(frozen=True)
class Outputs:
    """Outputs of one form of the model: logits at every position of the labelled samples, and replies."""

    logits: tuple[Tensor, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """One form compared with the tuned model as the run saved it."""

    form: str
    same_replies: int
    count: int
    largest_difference: float  # of any logit
    relative: float = 0.0  # the same, as a share of the largest logit


def verify_run(path: Path, count: int) -> bool:
    """Compare adapter, merged and exported forms on `count` held-out samples; False when something is wrong.

    Raises:
        RunError: when the run has not been trained.
    """
    folder = open_run(path)
    if not folder.training.is_file():
        raise RunError(f"{path}: training has not ended — run the same `tailor run` command again to finish it")
    run = resolve_here(folder.recipe())
    samples = [run.task.phrase(sample) for sample in unchanged(folder, read_held_out(folder).samples[:count])]
    longest = reply_tokens(run)
    tuned = open_tuned(run, folder.adapter)
    reference = observe(tuned, samples, longest)
    again = observe(open_tuned(run, folder.adapter), samples, longest)
    rows = [agreement("adapter, opened again", reference, again)]
    merge(tuned)
    rows.append(agreement("merged", reference, observe(tuned, samples, longest)))
    update = _update(tuned, run)
    with tempfile.TemporaryDirectory() as out:
        save_model(tuned, Path(out))
        exported = open_base(run.with_model_folder(Path(out)))
        rows.append(agreement("exported, opened again", reference, observe(exported, samples, longest)))
    untouched = agreement("untouched base", reference, observe(open_base(run), samples, longest))
    _show(rows, untouched)
    tensors = _tensors(folder.adapter)
    show(f"All {tensors} tensors of the adapter are loaded and change the weights by {update:.3%}.")
    agree = all(row.same_replies == row.count for row in rows) and untouched.largest_difference > 0 and update > 0
    forms = {row.form: asdict(row) for row in (*rows, untouched)}
    show_json({"run": str(path), "agree": agree, "forms": forms, "relative_update": update})
    return agree


@torch.no_grad()
def _update(merged: LoadedModel, run: ResolvedRun) -> float:
    """Norm of merged weights minus base weights (dequantised as in training), as a share of the base's norm."""
    base = open_for_training(run)
    merge(base)
    before = base.model.state_dict()
    pairs = [(before[name].float(), now.float()) for name, now in merged.model.state_dict().items() if name in before]
    change = sum(float((now - old).pow(2).sum()) for old, now in pairs)
    return float((change / sum(float(old.pow(2).sum()) for old, _ in pairs)) ** 0.5)


def _tensors(adapter: Path) -> int:
    """The number of tensors in the adapter's files; loading refuses unknown and missing ones."""
    count = 0
    for file in adapter.rglob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            count += len(stored.keys())
    return count


def reply_tokens(run: ResolvedRun) -> int:
    """The longest reply that is compared: no longer than the run's replies can be."""
    return min(REPLY_TOKENS, run.recipe.predict.max_new_tokens)


@torch.no_grad()
def observe(model: LoadedModel, samples: Sequence[Conversation], max_new_tokens: int = REPLY_TOKENS) -> Outputs:
    """Logits and replies of a model, computed in float32 so that rounding hides no difference between weights."""
    model.model.eval()
    for module in model.model.modules():
        if hasattr(module, "compute_dtype"):  # a packed layer of bitsandbytes
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
    logits = []
    for sample in samples:
        batch = collate([encode(sample, model)], model)
        batch.pop("labels")
        output = model.model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits
        logits.append(output.float().cpu())
    return Outputs(tuple(logits), tuple(generate(samples, model, max_new_tokens=max_new_tokens)))


def agreement(form: str, one: Outputs, other: Outputs) -> Agreement:
    """How far the outputs of two forms of a model agree on the same samples."""
    same = sum(a == b for a, b in zip(one.replies, other.replies, strict=True))
    difference = max(float((a - b).abs().max()) for a, b in zip(one.logits, other.logits, strict=True))
    largest = max(float(a.abs().max()) for a in one.logits)
    return Agreement(form, same, len(one.replies), difference, difference / largest)


def _show(rows: Sequence[Agreement], untouched: Agreement) -> None:
    columns = ("form", "same replies", "largest difference of a logit")
    table = Table("Every form of the tuned model compared with the saved one", *columns)
    for row in rows:
        table.add_row(row.form, f"{row.same_replies} of {row.count}", f"{row.largest_difference:.2g}")
    show(table)
    if untouched.largest_difference == 0:
        show(("The tuned model equals its base: nothing was learned, or the adapter is not used.", "bold red"))
    else:
        show(
            f"The untouched base differs by up to {untouched.largest_difference:.2g} "
            f"and gives the same reply for {untouched.same_replies} of {untouched.count} samples."
        )
