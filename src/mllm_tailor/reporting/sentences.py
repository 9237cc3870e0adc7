"""The sentences of a report: the gain, its uncertainty, and how it compares with the baselines.

Every sentence follows from the figures in every case: a gain, a loss, no change, an open question, too few samples.
"""

from __future__ import annotations

from collections.abc import Mapping

from mllm_tailor.reporting.report_data import ReportData
from mllm_tailor.scoring.compare import FormAndReading, Gain
from mllm_tailor.scoring.intervals import FEWEST_UNITS, Interval
from mllm_tailor.scoring.scores import Ratios

SYSTEMS = {
    "baseline_constant": ("Constant answer", "the most frequent training values for every sample"),
    "baseline_majority": ("Majority answer", "the most frequent training answer to samples of the same kind"),
    "baseline_nearest": ("Nearest neighbour", "the labels of the most similar training sample"),
    "base_constrained": ("Base", "constrained decoding"),
    "base_unconstrained": ("Base, unconstrained", "no grammar"),
    "base_likelihood": ("Base, likelihood", "the reply of highest likelihood"),
    "tuned_constrained": ("Tuned", "constrained decoding"),
    "tuned_unconstrained": ("Tuned, unconstrained", "no grammar"),
    "tuned_likelihood": ("Tuned, likelihood", "the reply of highest likelihood"),
}
BASELINES = ("baseline_constant", "baseline_majority", "baseline_nearest")
SMALL_COUNT = 10  # below this many samples, percentages of right and wrong are shown as counts
_BASELINE_SUBJECTS = {
    "baseline_constant": "The constant answer (the most frequent training values)",
    "baseline_majority": "The majority answer (the most frequent training answer to samples of the same kind)",
    "baseline_nearest": "The nearest neighbour (the labels of the most similar training sample)",
}
_TITLES = {
    "f1": "F1",
    "anls": "ANLS",
    "iou": "IoU",
    "iou_50": "IoU at 0.5",
    "mask_iou": "mask IoU",
    "mask_iou_50": "mask IoU at 0.5",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
}


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
    """The interval in words, such as `3.1 to 8.4`."""
    return f"{number(interval.low)} to {number(interval.high)}" if interval.known else "too few to say"


def score_text(value: float, count: int, right: int | None) -> str:
    """A score in percent, or as a count where fewer than ten samples are each right or wrong; a dash without any.

    >>> score_text(62.5, 8, 5), score_text(62.5, 80, 50), score_text(62.5, 8, None), score_text(0.0, 0, 0)
    ('5 of 8', '62.5', '62.5', '–')
    """
    if not count:
        return "–"
    return f"{right} of {count}" if right is not None and count < SMALL_COUNT else number(value)


def ratios_text(ratios: Ratios) -> str:
    """`score_text` of the ratios of a metric."""
    return score_text(ratios.value, ratios.count, ratios.right)


def score_pair(gain: Gain) -> tuple[str, str]:
    """`score_text` of both systems."""
    before, after = gain.right or (None, None)
    return score_text(gain.base.value, gain.count, before), score_text(gain.tuned.value, gain.count, after)


def headline(data: ReportData) -> str:
    """The gain as one sentence."""
    gain, unit = data.gain, _units(data)
    subject = f"On {_count(gain.count, 'held-out sample')} the {title(data.metric)} score"
    before, after = score_pair(gain)
    if gain.difference.known:
        of = f" over {_count(gain.difference.units, unit)}" if unit == "group" else ""
        interval = f"95\u00a0% interval of the change {between(gain.difference)}{of}"
    else:
        interval = f"too few {unit}s for an interval"
    change = number(abs(gain.difference.value))
    if change == "0.0":
        return f"{subject} stayed at {after} ({interval})."
    moved, direction = ("rose", "up") if gain.difference.value > 0 else ("fell", "down")
    return f"{subject} {moved} from {before} to {after}: {direction} {change} points ({interval})."


def meaning(data: ReportData, over_baselines: Mapping[str, Gain]) -> list[str]:
    """What the headline means."""
    sentences = (verdict(data.gain, _units(data)), _exact(data), _baseline(over_baselines))
    return [sentence for sentence in sentences if sentence]


def verdict(gain: Gain, unit: str = "sample") -> str:
    """Whether the choice of held-out samples explains the change."""
    if not gain.difference.known:
        return (
            f"The held-out samples come from only {_count(gain.difference.units, f'independent {unit}')}; an interval "
            f"needs at least {FEWEST_UNITS}. The figures describe these samples and say nothing about others."
        )
    side = "above" if gain.difference.value > 0 else "below"
    if gain.improved:
        return (
            f"The whole interval lies {side} zero: the tuned model is better, and the choice of held-out samples does "
            "not explain the gain."
        )
    if gain.worsened:
        return f"The whole interval lies {side} zero: the tuned model is worse than the base model. Do not use it."
    return (
        "The interval contains zero: this run shows neither a gain nor a loss. More held-out samples would narrow the "
        "interval."
    )


def _exact(data: ReportData) -> str:
    if "exact" not in data.systems[data.tuned].metrics:
        return ""
    (tuned, total), (base, _) = (_exact_values(data, name) for name in (data.tuned, data.base))
    return (
        f"Of {_count(total, 'value')} the tuned model writes {tuned} exactly as labelled, to the last character; "
        f"the base model {base}."
    )


def _exact_values(data: ReportData, system: str) -> tuple[int, int]:
    fields = data.systems[system]["exact"].fields.values()
    return round(sum(sum(field.numerator) for field in fields)), round(sum(sum(f.denominator) for f in fields))


def _baseline(over_baselines: Mapping[str, Gain]) -> str:
    """`over_baselines` compares the tuned model with each baseline."""
    if not over_baselines:
        return ""
    higher = next(iter(over_baselines.values())).better == "higher"
    name, best = (max if higher else min)(over_baselines.items(), key=lambda row: row[1].base.value)
    subject = f"{_BASELINE_SUBJECTS[name]} scores {score_pair(best)[0]}"
    difference = f"{signed(best.difference.value)} points, interval {between(best.difference)}"
    if best.improved:
        return f"{subject}; the tuned model is clearly better ({difference})."
    if best.worsened:
        return f"{subject}; the tuned model is clearly worse ({difference}): it is not shown that the model reads."
    return f"{subject}; the tuned model is not clearly better ({difference}): it is not shown that the model reads."


def form_or_reading(split: FormAndReading) -> str:
    """How much of the gain with unconstrained decoding is reading, and how much only the form of the reply."""
    start = f"With unconstrained decoding the change is {_points(split.total)}. "
    if not split.total.known:
        return f"{start}With constrained decoding, where no reply can fail on form, it is {_points(split.reading)}."
    reading = {
        "gain": f"The reading improved: with constrained decoding, where no reply can fail on form, the gain is "
        f"{_points(split.reading)}",
        "loss": f"The reading got worse: with constrained decoding, where no reply can fail on form, the loss is "
        f"{_points(split.reading)}",
        "open": f"No change in reading is shown: with constrained decoding, where no reply can fail on form, the "
        f"change is {_points(split.reading)}",
    }[_direction(split.reading)]
    form = {
        "gain": f"the form of the replies improved and accounts for {_points(split.form)}",
        "loss": f"the form of the replies got worse and accounts for {_points(split.form)}",
        "open": f"no change in the form of the replies is shown: {_points(split.form)}",
    }[_direction(split.form)]
    return f"{start}{reading}; {form}."


def _direction(interval: Interval) -> str:
    """`gain`, `loss` or `open`; positive is better."""
    return "open" if not interval.clear else "gain" if interval.low > 0 else "loss"


def _points(interval: Interval) -> str:
    return f"{signed(interval.value)} points (interval {between(interval)})"


def _units(data: ReportData) -> str:
    return "group" if any(data.sample_groups) else "sample"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
