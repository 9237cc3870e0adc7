"""The plan of a training, before it begins: what an epoch holds, by source and modality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.progress import console
from mllm_tailor.core.terminal import Table
from mllm_tailor.models import Length
from mllm_tailor.run.dataset import Job


@dataclass(frozen=True)
class Share:
    """One modality of one source."""

    source: str
    modality: str  # such as `image`
    distinct: int  # different samples
    samples: int  # in an epoch, repeats counted
    tokens: int  # of these, pictures included
    learned: int  # of the tokens, those that carry loss


def plan(job: Job, lengths: Mapping[str, Length]) -> list[Share]:
    """What an epoch of the job holds; `lengths` by sample id."""
    own = Path(job.recipe.data.train).name or job.recipe.data.train
    sources = {own: job.phrased, f"{own}, read aloud": job.transcriptions} | {
        one.name: one.samples for one in job.mixed
    }
    return [share for name, samples in sources.items() for share in _shares(name, samples, lengths)]


def _shares(name: str, samples: Sequence[Conversation], lengths: Mapping[str, Length]) -> Iterator[Share]:
    for modality in sorted({sample.modality for sample in samples}):
        ids = [sample.id for sample in samples if sample.modality == modality]
        tokens, learned = (sum(getattr(lengths[one], what) for one in ids) for what in ("tokens", "supervised"))
        yield Share(name, modality, len(set(ids)), len(ids), tokens, learned)


def print_plan(shares: Sequence[Share]) -> None:
    """A table, where there is anything to tell apart."""
    if len(shares) < 2:
        return
    columns = ("source", "modality", "samples", "different", "tokens", "of all tokens", "learned tokens")
    table = Table("An epoch of training", *columns)
    every = sum(share.tokens for share in shares)
    for share in shares:
        figures = (f"{share.samples:,}", f"{share.distinct:,}", f"{share.tokens:,}", f"{share.tokens / every:.1%}")
        table.add_row(share.source, share.modality, *figures, f"{share.learned:,}")
    console.print(table)
