"""`tailor merge`: export base and adapter as one plain folder, or the adapter alone, and score the export."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from mllm_tailor.commands.console import show
from mllm_tailor.commands.verify import Agreement, agreement, observe, reply_tokens
from mllm_tailor.core.errors import RunError, nearest
from mllm_tailor.core.failures import describe
from mllm_tailor.core.io import atomic_folder, named
from mllm_tailor.core.manifest import seal, verify
from mllm_tailor.core.sample import Sample
from mllm_tailor.methods import check_mergeable, truncate
from mllm_tailor.models import LoadedModel
from mllm_tailor.run.data_changes import unchanged
from mllm_tailor.run.data_record import read_held_out
from mllm_tailor.run.merged import save_merged
from mllm_tailor.run.model_card import write_card
from mllm_tailor.run.output_file import sole_writer
from mllm_tailor.run.predict import generate, open_base, open_tuned
from mllm_tailor.run.resolve import ResolvedRun, resolve_here
from mllm_tailor.run.run_dir import RunFolder, open_run, read_predictions
from mllm_tailor.run.scores import score_replies

# How an adapter trained on a 4-bit base is merged, and why a way is not exact; its samples measure how much that costs.
WAYS = {
    "dequantised": "",  # the update is added to the dequantised base: exact
    "unquantised": "the update is added to weights in full precision, which it was not trained on",
    "repacked": "the sum is quantised to 4 bits again, which loses part of the update",
}
LAYOUT = ("adapter_config.json", "adapter_model.safetensors")


def merge_run(path: Path, out: Path, *, count: int = 8, dtype: str | None = None, how: str = "dequantised") -> None:
    """Merge, save, and score the saved folder on `count` samples.

    `dtype` is the number format of the saved weights, by default that of the run. With `count` 0 nothing is measured.
    `how`: how an adapter trained on a 4-bit base is merged; see `WAYS`.

    Raises:
        RunError: when `out` is not empty or another process writes it, training has not ended, or `how` does not apply
            to this run.
    """
    _ended(path, out)
    with sole_writer(named(out)):
        _merge(path, out, count=count, dtype=dtype, how=how)


def _merge(path: Path, out: Path, *, count: int, dtype: str | None, how: str) -> None:
    folder, run = _ended(path, out)
    if how not in WAYS:
        raise RunError(f"--how: unknown way to merge `{how}` — {nearest(how, WAYS)}")
    check_mergeable(run.method)
    model = open_tuned(run, folder.adapter)
    if how != "dequantised" and model.quantize != "nf4":
        raise RunError(f"{path}: --how {how} is for adapters trained on a 4-bit base — leave it out")
    samples = unchanged(folder, read_held_out(folder).samples[:count]) if count else ()
    phrased = [run.task.phrase(sample) for sample in samples]
    writes = bool(samples) and not model.family.compares
    before = observe(model, phrased, reply_tokens(run)) if writes else None
    if how == "unquantised":
        model = open_base(run)
        run.method.load(model, folder.adapter, unquantised=True)
    if dtype:
        model.dtype = getattr(torch, dtype)
        if dtype == "float32" and not model.quantize:
            model.model.float()  # the sum must not be rounded before it is saved
    if WAYS[how]:
        show((f"{how}: {WAYS[how]}{'' if count else ' — --samples measures the cost'}", "yellow"))
    with save_merged(model, out, "repacked" if how == "repacked" else "dequantised") as partial:
        seal(partial)
        write_card(partial, folder, run, model, "merged", "")
    if not samples:
        return
    exported = run.with_model(path=str(out), revision=None, dtype=str(model.dtype).removeprefix("torch."))
    saved = open_base(exported)
    after = observe(saved, phrased, reply_tokens(run)) if before else None
    rounding = agreement("exported", before, after) if before and after else None
    said = [f"Merged as `{how}`: {WAYS[how]}." if WAYS[how] else "", _rescored(folder, exported, saved, samples)]
    checked = "\n\n".join(filter(None, [*said, _rounding(rounding, run, model)]))
    try:
        write_card(out, folder, run, model, "merged", f"## This folder, opened again\n\n{checked}")
    except OSError as error:  # the model is whole, and was verified as such
        show((f"{out / 'README.md'} lacks what follows ({describe(error)})", "yellow"))
    show(checked)
    show(f"Merged model in {out}. Open it anywhere with transformers, or here with model: {out}")


def export_adapter(path: Path, out: Path) -> None:
    """Export the adapter in PEFT's layout with processor, template and model card; the base is stored elsewhere.

    Raises:
        RunError: when `out` is not empty, training has not ended, or the run has no single PEFT adapter.
    """
    folder, run = _ended(path, out)
    if not all((folder.adapter / name).is_file() for name in LAYOUT):
        raise RunError(f"{folder.adapter}: not a single PEFT adapter — leave out --adapter to write the merged model")
    model = open_base(run)
    verify(folder.path, folder.adapter)
    with atomic_folder(out) as partial:
        shutil.copytree(folder.adapter, partial, dirs_exist_ok=True)
        if model.family.tiled:
            model.processor.keep(model.tiles, model.system, reflow=model.reflow)
        model.processor.save_pretrained(partial)
        write_card(partial, folder, run, model, "adapter", "")
    show(f"Adapter in {out}. Load it with its base in PEFT or vLLM; its README.md shows how")


def truncate_run(path: Path, rank: int, out: Path) -> None:
    """Truncate the adapter of a DyLoRA run to `rank`: a plain LoRA.

    Raises:
        RunError: when `out` is not empty or training has not ended.
        ModelError: when the run's method is not DyLoRA or its rank is lower.
    """
    folder, _ = _ended(path, out)
    verify(folder.path, folder.adapter)
    truncate(folder.adapter, rank, out)
    show(f"LoRA of rank {rank} in {out}")


def _ended(path: Path, out: Path) -> tuple[RunFolder, ResolvedRun]:
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty — name a new folder")
    folder = open_run(path)
    if not folder.training.is_file():
        raise RunError(f"{path}: training has not ended — run the same `tailor run` command again to finish it")
    return folder, resolve_here(folder.recipe())


def _rescored(folder: RunFolder, run: ResolvedRun, model: LoadedModel, samples: Sequence[Sample]) -> str:
    """Scores of the exported folder and those the run recorded for the same samples, and how many replies agree."""
    replies = generate(run.mode, model, run, samples)
    known = {row.id: row for row in read_predictions(folder.predictions(run.system("tuned")))}
    recorded = [known[sample.id] for sample in samples if sample.id in known]
    again = f"Predicted {len(samples)} held-out samples again: {_shown(score_replies(run, samples, replies))}."
    if len(recorded) < len(samples):
        return again
    same = sum(one.text == other.text for one, other in zip(replies, recorded, strict=True))
    return (
        f"{again} The run recorded {_shown(score_replies(run, samples, recorded))} for them; "
        f"{same} of {len(samples)} replies are the same."
    )


def _shown(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in scores.items())


def _rounding(found: Agreement | None, run: ResolvedRun, model: LoadedModel) -> str:
    """How merging and saving changed the logits, with a warning where DoRA was rounded."""
    if found is None:
        return ""
    number = str(model.dtype).removeprefix("torch.")
    said = (
        f"Saved as {number}, its logits differ from the unmerged model's by at most {found.largest_difference:.2g} "
        f"({100 * found.relative:.2g} % of the largest)."
    )
    settings = run.recipe.model_dump(mode="json")["method"]
    if number == "float32" or "dora" not in str(settings).lower().replace("'dora': false", ""):
        return said
    return (
        f"{said} **DoRA merged and rounded to {number}** has cost a published extractor 13 points of F1: compare the "
        "scores above, and use `--dtype float32` or the adapter where they fall."
    )
