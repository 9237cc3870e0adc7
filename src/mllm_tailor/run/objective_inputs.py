"""What some objectives need of a run: scores of replies while training, and the model's own wrong readings."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.manifest import record
from mllm_tailor.core.sample import Sample
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.models import LoadedModel
from mllm_tailor.run.dataset import Splits
from mllm_tailor.run.predict import generate, predict_to_files
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.rollouts import longest_reply, make_sampler
from mllm_tailor.run.run_dir import RunFolder, in_order, read_predictions
from mllm_tailor.run.scores import score_replies
from mllm_tailor.training import ObjectiveInputs

logger = logging.getLogger(__name__)
REJECTED = "rejected"  # column of a sample that holds a rejected reply
TRAINING_BEFORE = "training_before"  # file of the replies to the training samples before training


def gather_objective_inputs(
    folder: RunFolder, run: ResolvedRun, splits: Splits, model: LoadedModel, cache: VisionFeatureCache
) -> ObjectiveInputs:
    """Whatever the recipe's objective asks for; computed only then."""
    preferences, sampling = run.recipe.train.prefer is not None, run.recipe.train.sampling

    def measure(conversations: Sequence[Conversation]) -> float:
        """The headline metric of the model's replies, 0 to 1, 1 being best."""
        asked = [conversation.sample for conversation in conversations]
        replies = generate(run.mode, model, run, asked)
        share = next(iter(score_replies(run, asked, replies).values())) / 100
        return 1 - share if run.lower_is_better else share

    started = time.process_time()
    rejected = rejected_replies(folder, run, splits, model, cache) if preferences else None
    return ObjectiveInputs(
        measure=measure,
        rejected=rejected,
        cpu_seconds=time.process_time() - started,
        sample_replies=make_sampler(run, sampling, model, cache) if sampling is not None else None,
        rewarded=frozenset(sample.id for sample in splits.train),
        longest_reply=0 if sampling is None else longest_reply(run, sampling),
    )


def rejected_replies(
    folder: RunFolder, run: ResolvedRun, splits: Splits, model: LoadedModel, cache: VisionFeatureCache
) -> dict[str, str]:
    """Id and rejected reply of training samples: the one that the row states, else the model's own wrong reading.

    Of further sources, the samples that state a rejected reply take part, such as corrections of `tailor review`.
    """
    mixed = {item.id: (item.sample, item) for item in splits.mixed_samples if REJECTED in item.sample.extra}
    pairs = [*zip(splits.train, splits.phrased, strict=True), *mixed.values()]
    stated = {sample.id: str(sample.extra[REJECTED]) for sample, _ in pairs if REJECTED in sample.extra}
    same = [phrased.id for _, phrased in pairs if stated.get(phrased.id, "").strip() == (phrased.answer or "").strip()]
    stated = {name: reply for name, reply in stated.items() if name not in same and reply.strip()}
    if stated:
        logger.info("%d rejected replies are stated in the data", len(stated))
    others = [(sample, phrased) for sample, phrased in pairs if sample.id not in stated and sample.id not in same]
    return stated | (wrong_readings(folder, run, others, model, cache) if others else {})


def wrong_readings(
    folder: RunFolder,
    run: ResolvedRun,
    pairs: Sequence[tuple[Sample, Conversation]],
    model: LoadedModel,
    cache: VisionFeatureCache,
) -> dict[str, str]:
    """Id and reply of every training sample that the model, before training, does not read perfectly.

    `pairs` are samples and what the model is shown of them. The replies are kept in the run folder, so that an
    interrupted run continues.
    """
    path = folder.predictions(TRAINING_BEFORE)
    samples = [sample for sample, _ in pairs]
    logger.info("Reading %d training samples for what the model gets wrong", len(samples))
    predict_to_files({run.mode: path}, model, run, samples, cache)
    record(folder.path, path)
    replies = in_order([sample.id for sample in samples], read_predictions(path))
    best = 0.0 if run.lower_is_better else 100.0
    wrong = {}
    for (sample, phrased), reply in zip(pairs, replies, strict=True):
        value = next(iter(score_replies(run, [sample], [reply]).values()))
        text = reply.text.strip()
        if value != best and text and text != (phrased.answer or "").strip():
            wrong[sample.id] = text
    logger.info("%d wrong readings to learn from; %d samples take no part", len(wrong), len(samples) - len(wrong))
    return wrong
