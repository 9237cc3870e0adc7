"""Metrics: pure functions of labels and predictions. A new metric is one file and one line here."""

from __future__ import annotations

from mllm_tailor.core.registry import Entry, Registry
from mllm_tailor.scoring.metrics.base import ByField, Corpus, Metric, Ratio, Whole

_HERE = "mllm_tailor.scoring.metrics"

METRICS = Registry(
    "metric",
    {
        "fuzzy": Entry(f"{_HERE}.strings:FUZZY", "character similarity, as published for receipts (lenient)"),
        "exact": Entry(f"{_HERE}.strings:EXACT", "share of values equal in every character"),
        "normalised_exact": Entry(
            f"{_HERE}.strings:NORMALISED_EXACT", "exact except for case, spaces and, in amounts, currency signs"
        ),
        "f1": Entry(f"{_HERE}.f1:F1", "SROIE task 3: micro F1 of exact values"),
        "anls": Entry(f"{_HERE}.anls:ANLS", "average normalised Levenshtein similarity; below 0.5 counts as 0"),
        "row_f1": Entry(f"{_HERE}.line_items:ROW_F1", "line items: F1 of rows with every cell right, in any order"),
        "row_precision": Entry(
            f"{_HERE}.line_items:ROW_PRECISION", "line items: share of the reply's rows that are right"
        ),
        "row_recall": Entry(f"{_HERE}.line_items:ROW_RECALL", "line items: share of the label's rows that are found"),
        "cell_f1": Entry(f"{_HERE}.line_items:CELL_F1", "line items: F1 of cells, rows aligned"),
        "cell_precision": Entry(
            f"{_HERE}.line_items:CELL_PRECISION", "line items: share of the reply's cells that are right"
        ),
        "cell_recall": Entry(
            f"{_HERE}.line_items:CELL_RECALL", "line items: share of the label's cells that are found"
        ),
        "tree_edit": Entry(f"{_HERE}.tree_edit:TREE_EDIT", "tree-edit accuracy of the whole answer (donut, CORD)"),
        "parse_rate": Entry(f"{_HERE}.rates:PARSE_RATE", "share of replies that could be parsed"),
        "absent_rate": Entry(f"{_HERE}.rates:ABSENT_RATE", "share of labelled values left empty (lower is better)"),
        "invented_rate": Entry(
            f"{_HERE}.rates:INVENTED_RATE", "share of empty labels answered with a value (lower is better)"
        ),
        "accuracy": Entry(f"{_HERE}.answers:ACCURACY", "short answers equal after the usual VQA normalisation"),
        "token_recall": Entry(f"{_HERE}.answers:TOKEN_RECALL", "share of the label's words found in the answer"),
        "iou_50": Entry(f"{_HERE}.iou:IOU_50", "share of boxes with an IoU of at least 0.5 with the true box"),
        "mask_iou": Entry(f"{_HERE}.mask_iou:MASK_IOU", "intersection over union of the outlined and the true area"),
        "mask_iou_50": Entry(f"{_HERE}.mask_iou:MASK_IOU_50", "share of outlines with a mask IoU of at least 0.5"),
        "iou": Entry(f"{_HERE}.iou:IOU", "intersection over union of the box and the true box"),
        "rouge_l": Entry(f"{_HERE}.captions:ROUGE_L", "F score of the longest common subsequence of words"),
        "bleu": Entry(f"{_HERE}.captions:BLEU", "BLEU-4 of each text, smoothed (Lin and Och 2004)"),
        "cider": Entry(f"{_HERE}.captions:CIDER", "CIDEr-D in percent of its maximum: rare n-grams count most"),
        "meteor": Entry(f"{_HERE}.meteor:METEOR", "METEOR (2005) with exact and stem matches, without synonyms"),
        "recall_1": Entry(f"{_HERE}.recall:RECALL_1", "recall at 1: share of rankings with the right item first"),
        "recall_5": Entry(f"{_HERE}.recall:RECALL_5", "recall at 5"),
        "recall_10": Entry(f"{_HERE}.recall:RECALL_10", "recall at 10"),
        "word_errors": Entry(f"{_HERE}.error_rates:WORD_ERRORS", "word error rate (lower is better)"),
        "character_errors": Entry(f"{_HERE}.error_rates:CHARACTER_ERRORS", "character error rate (lower is better)"),
    },
    group="mllm_tailor.metrics",
)

__all__ = ["METRICS", "ByField", "Corpus", "Metric", "Ratio", "Whole"]
