"""What some objectives need of a run: scores of replies while training, and the model's own wrong readings."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.progress import console
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.models import LoadedModel
from mllm_tailor.run.dataset import Job
from mllm_tailor.run.predict import generate, generate_to_file
from mllm_tailor.run.run_dir import RunFolder, in_order, read_predictions
from mllm_tailor.run.scores import in_mode, less_is_better, score_part
from mllm_tailor.training import ObjectiveInputs


def gather_objective_inputs(
    run: RunFolder, job: Job, model: LoadedModel, memory: VisionFeatureCache
) -> ObjectiveInputs:
    """Whatever the recipe's objective asks for; computed only then."""
    wanted = job.recipe.train.prefer is not None
    return ObjectiveInputs(
        measure=lambda samples: _measure(job, model, samples),
        rejected=wrong_readings(run, job, model, memory) if wanted else None,
    )


def _measure(job: Job, model: LoadedModel, conversations: Sequence[Conversation]) -> float:
    """The first metric on the model's replies, 0 to 1, 1 being best."""
    asked = [conversation.sample for conversation in conversations]
    said = generate(in_mode(job.task, job.recipe.predict), model, job.task, asked, job.recipe.predict)
    share = next(iter(score_part(job, asked, said).values())) / 100
    return 1 - share if less_is_better(job.recipe, job.task) else share


def wrong_readings(run: RunFolder, job: Job, model: LoadedModel, memory: VisionFeatureCache) -> dict[str, str]:
    """Id and reply of every training sample that the model, as it begins, does not read perfectly.

    The replies are kept in the run folder, so that an interrupted reading goes on.
    """
    samples = job.train
    path = run.predictions("training_before")
    console.print(f"Reading {len(samples)} training samples for what the model gets wrong")
    generate_to_file(path, in_mode(job.task, job.recipe.predict), model, job.task, samples, job.recipe, memory)
    said = in_order([sample.id for sample in samples], read_predictions(path))
    best = 0.0 if less_is_better(job.recipe, job.task) else 100.0
    found = {}
    for sample, phrased, reply in zip(samples, job.phrased, said, strict=True):
        value = next(iter(score_part(job, [sample], [reply]).values()))
        if value != best and reply.text.strip() and reply.text.strip() != (phrased.answer or "").strip():
            found[sample.id] = reply.text.strip()
    console.print(f"{len(found)} wrong readings to learn from; {len(samples) - len(found)} samples take no part")
    return found
