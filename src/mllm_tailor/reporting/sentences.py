"""The sentences of a report: the gain, its uncertainty, and how it compares with the baselines."""

from __future__ import annotations

from collections.abc import Mapping

from mllm_tailor.reporting.report_data import ReportData
from mllm_tailor.scoring.compare import RESAMPLES, Gain, Interval

SYSTEMS = {
    "baseline_constant": ("Constant answer", "the most frequent training values for every sample"),
    "baseline_majority": ("Majority answer", "the most frequent training answer to samples of the same kind"),
    "baseline_nearest": ("Nearest neighbour", "the labels of the most similar training sample"),
    "base_constrained": ("Base", "constrained decoding"),
    "base_unconstrained": ("Base, unconstrained", "unconstrained decoding"),
    "base_likelihood": ("Base, likelihood", "the reply of highest likelihood"),
    "tuned_constrained": ("Tuned", "constrained decoding"),
    "tuned_unconstrained": ("Tuned, unconstrained", "unconstrained decoding"),
    "tuned_likelihood": ("Tuned, likelihood", "the reply of highest likelihood"),
}
BASELINES = ("baseline_constant", "baseline_majority", "baseline_nearest")
_BASELINE_SUBJECTS = {
    "baseline_constant": "The constant answer (the most frequent training values)",
    "baseline_majority": "The majority answer (the most frequent training answer to samples of the same kind)",
    "baseline_nearest": "The nearest neighbour (the labels of the most similar training sample)",
}
_TITLES = {"f1": "F1", "anls": "ANLS"}


def title(metric: str) -> str:
    """How a metric is written in running text."""
    return _TITLES.get(metric, metric.replace("_", " "))


def number(value: float) -> str:
    """One decimal, a real minus sign.

    >>> number(-0.04), number(-12.34)
    ('0.0', '−12.3')
    """
    rounded = round(value, 1) + 0.0  # no negative zero
    return f"{rounded:.1f}".replace("-", "−")


def signed(value: float) -> str:
    """With its sign, as a difference is written."""
    shown = number(value)
    return shown if shown.startswith("−") or shown == "0.0" else f"+{shown}"


def between(interval: Interval) -> str:
    """The range in words."""
    return f"{number(interval.low)} to {number(interval.high)}"


def headline(data: ReportData) -> str:
    """The gain as one sentence."""
    gain = data.gain
    change = gain.difference.value
    start = f"On {gain.count} held-out samples the {title(data.metric)} score"
    interval = f"95\u00a0% interval of the change {between(gain.difference)}"
    if not change:
        return f"{start} stayed at {number(gain.base.value)} ({interval})."
    moved, word = ("rose", "up") if change > 0 else ("fell", "down")
    path = f"from {number(gain.base.value)} to {number(gain.tuned.value)}"
    return f"{start} {moved} {path}: {word} {number(abs(change))} points ({interval})."


def meaning(data: ReportData, over_baselines: Mapping[str, Gain]) -> list[str]:
    """What the headline means."""
    return [sentence for sentence in (_chance(data.gain), _exact(data), _baseline(over_baselines)) if sentence]


def _chance(gain: Gain) -> str:
    share = f"{100 * gain.share_better:.1f}\u00a0% of {RESAMPLES:,} draws of these samples"
    if gain.improved:
        return f"The tuned model is the better one in {share}, so the choice of samples does not explain the gain."
    if gain.difference.clear:
        return f"The tuned model is worse than the base model in all but {share}. Do not use it."
    return (
        f"The interval holds zero (the tuned model is the better one in {share}): this run does not show a gain. "
        "More held-out samples would narrow the interval."
    )


def _exact(data: ReportData) -> str:
    if "exact" not in data.systems[data.tuned].metrics:
        return ""
    counts = {name: _exact_values(data, name) for name in (data.base, data.tuned)}
    total = counts[data.tuned][1]
    return (
        f"Of {total} values it writes {counts[data.tuned][0]} exactly as labelled, "
        f"to the last character; the base model {counts[data.base][0]}."
    )


def _exact_values(data: ReportData, system: str) -> tuple[int, int]:
    fields = data.systems[system]["exact"].fields.values()
    return round(sum(sum(one.numerator) for one in fields)), round(sum(sum(one.denominator) for one in fields))


def _baseline(over_baselines: Mapping[str, Gain]) -> str:
    """`over_baselines` compares the tuned model with each baseline."""
    if not over_baselines:
        return ""
    higher = next(iter(over_baselines.values())).better == "higher"
    name, best = (max if higher else min)(over_baselines.items(), key=lambda row: row[1].base.value)
    reached = f"{_BASELINE_SUBJECTS[name]} reaches {number(best.base.value)}"
    difference = f"{signed(best.difference.value)} points, interval {between(best.difference)}"
    if best.improved:
        return f"{reached}; the tuned model is clearly better ({difference})."
    return f"{reached}, and the tuned model is not clearly better ({difference}): it is not shown that the model reads."


def format_or_reading(free: Gain, held: Gain) -> str:
    """How much of the gain is only the form of the reply. `held` is constrained to the schema."""
    form = free.difference.value - held.difference.value
    sentence = (
        f"Replying freely, the gain is {signed(free.difference.value)} points. With both models held to the schema, "
        f"where neither can fail on form, it is {signed(held.difference.value)}"
    )
    if form > 0.05:
        return f"{sentence}: {number(form)} points of the free gain come from learning the form of the reply."
    return f"{sentence}: the gain is not one of form."
