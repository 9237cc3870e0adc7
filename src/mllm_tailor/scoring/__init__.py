"""Pure numbers: metrics, baselines, paired comparison, learning curves. No torch, nothing drawn."""

from __future__ import annotations

from mllm_tailor.scoring.baselines import constant_baseline, nearest_neighbour_baseline, seen_groups
from mllm_tailor.scoring.compare import FormAndReading, Gain, compare, form_and_reading, gain
from mllm_tailor.scoring.forgetting import Forgetting, SetScores
from mllm_tailor.scoring.intervals import Interval
from mllm_tailor.scoring.learning import LearningCurve, fit_curve
from mllm_tailor.scoring.metrics import METRICS, Metric
from mllm_tailor.scoring.sample_size import SamplesNeeded, samples_needed
from mllm_tailor.scoring.scores import MetricScore, Ratios, Scores, pool, score

__all__ = [
    "METRICS",
    "Forgetting",
    "FormAndReading",
    "Gain",
    "Interval",
    "LearningCurve",
    "Metric",
    "MetricScore",
    "Ratios",
    "SamplesNeeded",
    "Scores",
    "SetScores",
    "compare",
    "constant_baseline",
    "fit_curve",
    "form_and_reading",
    "gain",
    "nearest_neighbour_baseline",
    "pool",
    "samples_needed",
    "score",
    "seen_groups",
]
