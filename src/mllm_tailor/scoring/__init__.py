"""Scores: metrics, floors, paired comparison, and the report and tables that show them. Pure functions, no torch."""

from __future__ import annotations

from mllm_tailor.scoring.compare import Gain, Interval, compare, gain
from mllm_tailor.scoring.floors import constant_floor, nearest_floor, seen_groups
from mllm_tailor.scoring.learning import LearningCurve, fit_curve
from mllm_tailor.scoring.metrics import METRICS, Metric
from mllm_tailor.scoring.progression import Progression, SetScores, progression_tables
from mllm_tailor.scoring.scores import MetricScore, Ratios, Scores, score
from mllm_tailor.scoring.tables import empty_table, gain_table, plain, score_table

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
    "constant_floor",
    "empty_table",
    "fit_curve",
    "gain",
    "gain_table",
    "nearest_floor",
    "plain",
    "progression_tables",
    "score",
    "score_table",
    "seen_groups",
]
