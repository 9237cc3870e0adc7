"""Scores: metrics, floors, paired comparison, and the report and tables that show them. Pure functions, no torch."""

from __future__ import annotations

from mllm_tailor.scoring.baselines import constant_baseline, nearest_neighbour_baseline, seen_groups
from mllm_tailor.scoring.compare import Gain, Interval, compare, gain
from mllm_tailor.scoring.forgetting import Progression, SetScores
from mllm_tailor.scoring.learning import LearningCurve, fit_curve
from mllm_tailor.scoring.metrics import METRICS, Metric
from mllm_tailor.scoring.scores import MetricScore, Ratios, Scores, score

__all__ = [
    "METRICS",
    "Gain",
    "Interval",
    "LearningCurve",
    "Metric",
    "MetricScore",
    "Progression",
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
