"""Decoding modes: the ways in which a model's reply to a sample is produced."""

from __future__ import annotations

from enum import StrEnum


class DecodingMode(StrEnum):
    """How a reply is decoded. Its value names files of predictions and systems in scores.json."""

    CONSTRAINED = "constrained"  # every token is allowed by the task's JSON schema
    UNCONSTRAINED = "unconstrained"  # free text, parsed afterwards
    LIKELIHOOD = "likelihood"  # the most likely of a closed set of replies
