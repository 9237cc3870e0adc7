"""Pure numbers: metrics, baselines, paired comparison, learning curves. No torch, nothing drawn."""

from __future__ import annotations

from mllm_tailor.scoring.baselines import constant_baseline, nearest_neighbour_baseline, seen_groups
from mllm_tailor.scoring.compare import Gain, Interval, compare, gain
from mllm_tailor.scoring.forgetting import Forgetting, SetScores
from mllm_tailor.scoring.learning import LearningCurve, fit_curve
from mllm_tailor.scoring.metrics import METRICS, Metric
from mllm_tailor.scoring.scores import MetricScore, Ratios, Scores, score

__all__ = [
    "METRICS",
    "Forgetting",
    "Gain",
    "Interval",
    "LearningCurve",
    "Metric",
    "MetricScore",
    "Ratios",
    "Scores",
    "SetScores",
    "compare",
    "constant_baseline",
    "fit_curve",
    "gain",
    "nearest_neighbour_baseline",
    "score",
    "seen_groups",
]
