"""Metrics: pure functions from labels and predictions to numbers. A new metric is one file and one line here."""

from __future__ import annotations

from mllm_tailor.core.registry import Entry, Registry
from mllm_tailor.scoring.metrics.base import ByField, Corpus, Metric, Ratio, Whole

_HERE = "mllm_tailor.scoring.metrics"

METRICS = Registry(
    "metric",
    {
        "fuzzy": Entry(f"{_HERE}.strings:FUZZY", "similarity of the characters, as published for receipts (forgiving)"),
        "exact": Entry(f"{_HERE}.strings:EXACT", "share of values equal to the last character"),
        "normalised_exact": Entry(
            f"{_HERE}.strings:NORMALISED_EXACT", "exact but for case, spaces and, in amounts, currency signs"
        ),
        "f1": Entry(f"{_HERE}.f1:F1", "SROIE task 3: micro F1 of exact values"),
        "anls": Entry(f"{_HERE}.anls:ANLS", "normalised Levenshtein similarity; less than half right counts nothing"),
        "tree_edit": Entry(f"{_HERE}.tree_edit:TREE_EDIT", "tree-edit accuracy of the whole answer (donut, CORD)"),
        "parse_rate": Entry(f"{_HERE}.rates:PARSE_RATE", "share of replies that could be read"),
        "absent_rate": Entry(f"{_HERE}.rates:ABSENT_RATE", "share of labelled values left empty (lower is better)"),
        "invented_rate": Entry(
            f"{_HERE}.rates:INVENTED_RATE", "share of empty labels answered with a value (lower is better)"
        ),
        "accuracy": Entry(f"{_HERE}.answers:ACCURACY", "short answers equal after the usual VQA normalisation"),
        "token_recall": Entry(f"{_HERE}.answers:TOKEN_RECALL", "share of the label's words found in the answer"),
        "iou_50": Entry(f"{_HERE}.iou:IOU_50", "share of boxes that cover the true one by half (IoU at 0.5)"),
        "iou": Entry(f"{_HERE}.iou:IOU", "area a box shares with the true one over the area of both"),
        "rouge_l": Entry(f"{_HERE}.captions:ROUGE_L", "longest common subsequence of words, as F"),
        "bleu": Entry(f"{_HERE}.captions:BLEU", "runs of one to four words in common, a smoothed BLEU a text"),
        "cider": Entry(
            f"{_HERE}.captions:CIDER", "CIDEr-D in percent of its greatest value: rare runs of words count most"
        ),
        "meteor": Entry(f"{_HERE}.meteor:METEOR", "METEOR (2005) of equal words and stems, without synonyms"),
        "recall_1": Entry(f"{_HERE}.recall:RECALL_1", "share of rankings whose first is the right one"),
        "recall_5": Entry(f"{_HERE}.recall:RECALL_5", "the same among the first five"),
        "recall_10": Entry(f"{_HERE}.recall:RECALL_10", "the same among the first ten"),
        "word_errors": Entry(f"{_HERE}.error_rates:WORD_ERRORS", "word error rate (lower is better)"),
        "character_errors": Entry(f"{_HERE}.error_rates:CHARACTER_ERRORS", "character error rate (lower is better)"),
    },
)

__all__ = ["METRICS", "ByField", "Corpus", "Metric", "Ratio", "Whole"]
