"""What samples state and neither question nor label holds: named once for the set, with the first row.

Columns that say nothing about what a sample shows (`keys.HARMLESS_KEYS`) are left out; every column is in the ledger.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.keys import HARMLESS_KEYS
from mllm_tailor.tasks import AccountingTask, DeclaringTask, Task
from mllm_tailor.tasks.base import UNFILLED
from mllm_tailor.tasks.transcripts import TRANSCRIPTS

# Columns that a reader keeps for a purpose of its own: rejected replies for `train.prefer`, text for transcription, and
# what reviewers did about the values.
PURPOSES = frozenset({"rejected", "audited", "review", *TRANSCRIPTS})
_NAMED = re.compile(r"the key `([^`]+)`")


def unread_columns(sample: Sample) -> Iterator[str]:
    """The columns beside a sample that may state something about it, in backticks."""
    for name, value in sample.extra.items():
        if name not in HARMLESS_KEYS and name not in PURPOSES and value not in UNFILLED:
            yield f"`{name}`"


def unread_issues(
    samples: Sequence[Sample], task: Task, known: Iterable[DataIssue] = (), used: Iterable[str] = ()
) -> Iterator[DataIssue]:
    """A warning for what samples state beyond the task.

    Keys that an issue in `known` names are not named again, nor are the columns in `used`, which the recipe names.
    """
    named = {f"`{key}`" for issue in known for key in _NAMED.findall(issue.problem)} | {f"`{name}`" for name in used}
    rows: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        stated = [*unread_columns(sample), *(task.unread(sample) if isinstance(task, AccountingTask) else ())]
        for name in dict.fromkeys(stated):
            if name not in named:
                rows[name].append(sample.source)
    alike: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, sources in rows.items():
        alike[sources[0], len(sources)].append(name)
    for (source, count), names in alike.items():
        where = "all" if count == len(samples) else f"{count:,} of {len(samples):,}"
        problem = f"{', '.join(names)} ({where} samples): neither asked nor learned by task.{task.name}"
        fix = "add them to the task, or leave it so; they can be named in data.held_out and score_by"
        yield DataIssue(source, problem, fix, None, "warning")


def check_declared(samples: Sequence[Sample], task: Task) -> None:
    """Refuse a field that the task declares and no sample has.

    Raises:
        DataError: naming the field and the nearest one of the data.
    """
    if not isinstance(task, DeclaringTask) or not any(sample.fields for sample in samples):
        return
    for name in task.absent(samples):
        known = {str(key) for sample in samples for key in sample.fields}
        hint = nearest(name, known)
        raise DataError(f"task.{task.name}: no sample has the field `{name}` — {hint}")
