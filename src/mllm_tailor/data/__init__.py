"""Labelled folders into samples: layouts, splits, and the checks before any training."""

from mllm_tailor.data.columns import group_key
from mllm_tailor.data.detect import detect
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.layouts import LAYOUTS
from mllm_tailor.data.leaks import find_shared
from mllm_tailor.data.mixture import mix, ranked, read_source, source_names
from mllm_tailor.data.propose_recipe import propose_recipe, summarise
from mllm_tailor.data.read import Dataset, list_issues, may_share_system, merged, read_samples, shared_system
from mllm_tailor.data.split import split, split_dev
from mllm_tailor.data.stream import open_stream, write_stream
from mllm_tailor.data.unread import check_declared
from mllm_tailor.data.validate import FieldFacts, ValidationResult, exclusions, validate

__all__ = [
    "LAYOUTS",
    "DataIssue",
    "Dataset",
    "FieldFacts",
    "ValidationResult",
    "check_declared",
    "detect",
    "exclusions",
    "find_shared",
    "group_key",
    "list_issues",
    "may_share_system",
    "merged",
    "mix",
    "open_stream",
    "propose_recipe",
    "ranked",
    "read_samples",
    "read_source",
    "shared_system",
    "source_names",
    "split",
    "split_dev",
    "summarise",
    "validate",
    "write_stream",
]
