"""What an epoch of training holds, by source and modality, known before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.models import Length
from mllm_tailor.run.dataset import Splits


@dataclass(frozen=True)
class Share:
    """One modality of one source."""

    source: str
    modality: str  # such as `image`
    distinct: int  # different samples
    samples: int  # in an epoch, repeats counted
    tokens: int  # of these, those of images included
    learned: int  # of the tokens, those that carry loss


def summarise_epoch(data: str, splits: Splits, lengths: Mapping[str, Length]) -> list[Share]:
    """What an epoch holds; `data` is the path of the training data, `lengths` are by sample id."""
    own = Path(data).name or data
    sources = {own: splits.phrased, f"{own}, transcriptions": splits.transcriptions}
    sources |= {source.name: source.samples for source in splits.mixed}
    return [share for name, samples in sources.items() for share in _shares(name, samples, lengths)]


def _shares(name: str, samples: Sequence[Conversation], lengths: Mapping[str, Length]) -> Iterator[Share]:
    for modality in sorted({sample.modality for sample in samples}):
        ids = [sample.id for sample in samples if sample.modality == modality]
        tokens, learned = (sum(getattr(lengths[name], what) for name in ids) for what in ("tokens", "supervised"))
        yield Share(name, modality, len(set(ids)), len(ids), tokens, learned)
