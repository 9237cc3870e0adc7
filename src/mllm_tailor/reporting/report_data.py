"""What a report is made of. The run fills this in; everything derived from it is worked out by the report itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.accept import Promise
from mllm_tailor.scoring.compare import Gain
from mllm_tailor.scoring.reliability import Reliability
from mllm_tailor.scoring.scores import Scores

WATCHED = {  # what reward tuning logs of the replies it samples: title of the chart
    "reward": "Mean reward",
    "reward_spread": "Spread of the rewards of a group (standard deviation)",
    "equal_groups": "Share of groups with equal rewards, from which nothing is learned",
    "reply_tokens": "Tokens of a reply",
    "truncated": "Share of replies cut off",
    "entropy": "Entropy of a token (nats)",
    "kl": "Divergence from the start, by token (nats)",
    "watch/unreadable": "Share of replies that cannot be read",
    "watch/absent": "Share of labelled values that are left out",
    "watch/invented": "Share of empty labels for which a value is written",
}


@dataclass(frozen=True)
class Curves:
    """Training curves by optimizer step."""

    loss: Sequence[tuple[int, float]] = ()
    dev: Sequence[tuple[int, float]] = ()  # the headline metric on the dev part, in percent
    best_step: int | None = None  # of the weights that were kept
    watched: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)  # what an objective logs beside


@dataclass(frozen=True)
class LedgerLine:
    """What a number of samples was used for: `LedgerLine("held out", 69, "scored, never trained on")`."""

    split: str
    count: int
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """One cost, formatted: `Cost("peak memory", "2.1 GiB", "2.4 GiB")`."""

    name: str
    measured: str
    estimate: str = ""


@dataclass(frozen=True)
class ConfidenceData:
    """Confidences of the tuned model's values on samples that they were not fitted on."""

    parts: Mapping[str, Reliability] = field(default_factory=dict)  # "all", "seen", "unseen", "field NAME"
    promise: Promise | None = None
    fitted_on: str = ""  # such as "552 values of 139 dev samples in 60 groups"
    reason: str = ""  # why there is no calibration
    cross_fitted: bool = False


@dataclass(frozen=True)
class ReportData:
    """Plain values. Systems are named as in scores.json, such as `tuned_constrained` and `baseline_nearest`."""

    name: str  # of the run
    made: str  # date and time, as shown
    facts: Mapping[str, str]  # what was tuned on what, as shown: {"model": "embedded", "method": "qlora, rank 32"}
    metric: str  # the headline
    mode: str  # "constrained", "unconstrained" or "likelihood": the recipe's decoding mode
    systems: Mapping[str, Scores]  # all on the same held-out samples in the same order
    gains: Mapping[str, Gain]  # by metric, tuned against base in `mode`
    labels: Sequence[Mapping[str, Any]]  # of the held-out samples
    predictions: Mapping[str, Sequence[Prediction]]  # by system, in the same order
    questions: Sequence[str] = ()  # of the held-out samples, where each has its own
    sample_groups: Sequence[str | None] = ()  # of the held-out samples, for the intervals
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)  # indices of those in "seen" and "unseen" groups
    breakdowns: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)  # column -> value -> indices
    breakdown_metrics: Sequence[str] = ()  # shown by column beside the headline metric
    classes: Sequence[str] = ()  # where the one field of a reply is a class
    images: Mapping[str, bytes] = field(
        default_factory=dict
    )  # small JPEG files by sample id: of the cases and of samples with wrong values
    curves: Curves = Curves()
    ledger: Sequence[LedgerLine] = ()
    costs: Sequence[Cost] = ()
    confidence: ConfidenceData = field(default_factory=ConfidenceData)
    folds: int = 1  # models that scored the samples; above 1 in cross-validation
    recipe: str = ""  # the resolved YAML
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """Name of the base model's scores in the recipe's decoding mode."""
        return f"base_{self.mode}"

    @property
    def tuned(self) -> str:
        """Name of the tuned model's scores in the recipe's decoding mode."""
        return f"tuned_{self.mode}"

    @property
    def gain(self) -> Gain:
        """In the headline metric."""
        return self.gains[self.metric]
