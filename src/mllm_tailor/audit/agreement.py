"""Values that other labels contradict: the same company with another address, a name one letter off a frequent one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rapidfuzz import fuzz, process

from mllm_tailor.audit.columns import Column, Value
from mllm_tailor.audit.evidence import Evidence, quoted

DEPENDS = 0.5  # share of values that equal most others of their group, from which a field depends on another
OTHERS = 2  # values of a group that can contradict one
NEAR = 80.0  # similarity in percent of two spellings of one text
VERY_NEAR = 90.0
FREQUENT = 4  # times that a value stands before a rare near one counts as misspelt
LONG = 8  # letters and digits; shorter values are near one another by nature
SAME_LETTERS = 0.08  # weight of a difference in punctuation, case or spaces alone


def find_disagreement(columns: Sequence[Column]) -> Iterator[Evidence]:
    """Evidence from the labels of other pages."""
    for target in columns:
        for source in columns:
            if source is not target:
                groups = {value.page.id: value.key for value in source.values}
                yield from _contradicted(target, groups, source.name)
        by_group = {value.page.id: value.page.group for value in target.values if value.page.group is not None}
        yield from _contradicted(target, by_group, "group")
        if target.kind == "string":
            yield from _misspelt(target)


def _contradicted(column: Column, groups: Mapping[str, str], name: str) -> Iterator[Evidence]:
    """Values unlike most others whose page has the same `name`, if the field depends on it at all."""
    members: dict[str, list[Value]] = defaultdict(list)
    for value in column.values:
        if value.page.id in groups:
            members[groups[value.page.id]].append(value)
    findings: list[tuple[Value, str, Value, int, int]] = []
    agreeing = total = 0
    for group, values in members.items():
        counts = Counter(value.key for value in values)
        if len(values) <= OTHERS:
            continue
        for value in values:
            others = counts - Counter([value.key])
            usual, count = others.most_common(1)[0]
            total += 1
            agreeing += usual == value.key
            if usual != value.key and count >= OTHERS:
                example = next(other for other in values if other.key == usual)
                findings.append((value, group, example, count, len(values) - 1))
    dependence = agreeing / total if total else 0.0
    if dependence < DEPENDS:
        return
    for value, group, example, count, compared in findings:
        weight = _weight(value, example, dependence) * count / compared
        reason = f"{count} of {compared} others with {name} {quoted(group, 40)} have {quoted(example.text)}"
        yield Evidence(value.page.id, column.name, "agreement", weight, reason, example.text)


def _weight(value: Value, usual: Value, dependence: float) -> float:
    if value.loose == usual.loose:
        return SAME_LETTERS
    near = fuzz.ratio(value.loose, usual.loose) >= NEAR
    return 0.6 if near else 0.6 * dependence * dependence


def _misspelt(column: Column) -> Iterator[Evidence]:
    """Rare values that differ in a few letters from one that stands often."""
    counts = Counter(value.loose for value in column.values)
    frequent = [text for text, count in counts.items() if count >= FREQUENT and len(text) >= LONG]
    rare = [text for text, count in counts.items() if count * FREQUENT <= max(counts.values()) and len(text) >= LONG]
    if not frequent or not rare:
        return
    written = {value.loose: value for value in column.values}
    for text in rare:
        match = process.extractOne(text, frequent, scorer=fuzz.ratio, score_cutoff=VERY_NEAR)
        if match is None or match[0] == text or counts[text] * FREQUENT > counts[match[0]]:
            continue
        usual = written[match[0]].text
        for value in (value for value in column.values if value.loose == text):
            reason = f"nearly {quoted(usual)}, which {counts[match[0]]} samples have"
            yield Evidence(value.page.id, column.name, "agreement", 0.5, reason, usual)
