"""From a path to samples: recognise the layout, read every row, make ids unique."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.remote import local
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.damaged_files import damaged_files, refuse_damaged
from mllm_tailor.data.detect import detect, unread_files
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.layouts import LAYOUTS
from mllm_tailor.data.layouts.base import Folder, Layout
from mllm_tailor.data.stream import with_media_in
from mllm_tailor.data.unused_files import unused_files
from mllm_tailor.media.source import leads_inside

SHOWN_FAULTS = 20
# Of values that are not what a reader expects. What it can expect it names with its row.
SHAPE_ERRORS: tuple[type[Exception], ...] = (
    TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Samples as found, the layout they were found in, and what a reader should know about them."""

    samples: tuple[Sample, ...]
    layout: str = ""
    path: Path = Path()
    notes: tuple[str, ...] = ()
    media_root: str | Path | None = None


def read_samples(
    path: str | Path,
    layout: str | None = None,
    on_issue: Callable[[DataIssue], object] | None = None,
    media_root: str | Path | None = None,
    media_folder: Path | None = None,
) -> Dataset:
    """Read labelled samples from a folder or file, here or at a URL. Rows may also name media in `media_root`.

    With `media_folder`, media inside rows become files of it instead of bytes in memory. Rows that cannot be used are
    given to `on_issue`; without it, any error among them refuses the whole.

    Raises:
        DataError: naming the rows, or what was looked for when no layout is recognised.
    """
    path = local(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file — check `data.train`")
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"{path}: neither a folder nor a file — name the folder or file of labelled samples")
    if media_root is not None and not (media_root := local(media_root)).is_dir():
        raise DataError(f"{media_root}: no such folder — check `data.media_root`")
    folder = Folder(path, media_root)
    name, notes = (layout, []) if layout else detect(folder)
    reader: Layout = LAYOUTS.load(name)
    if layout and not reader.detect(folder):
        refuse_damaged(folder)
        raise DataError(f"{path}: is not laid out as `{layout}` ({LAYOUTS.summary(layout)}) — leave `layout` out")
    samples: list[Sample] = []
    faults: list[DataIssue] = []
    for item in _items(reader, folder, name, media_folder):
        (faults if isinstance(item, DataIssue) else samples).append(item)  # type: ignore[arg-type]
    faults += _unread(folder, reader, name, faults)
    samples, outside = without_links_out(folder, samples)
    faults += outside
    faults += unused_files(folder, reader, samples, [*faults])
    faults = merged(faults)
    errors = [fault for fault in faults if fault.severity == "error"]
    if on_issue is not None:
        for fault in faults:
            on_issue(fault)
    elif errors:
        raise DataError(list_issues(errors))
    if not samples:
        reason = f": {errors[0].source}: {errors[0].problem}" if errors else ""
        raise DataError(f"{path}: no readable sample{reason} — check the files")
    notes += [str(fault) for fault in faults if fault.severity == "warning"]
    return Dataset(tuple(unique_ids(samples)), name, path, tuple(notes), media_root)


def _unread(folder: Folder, reader: Layout, name: str, known: Sequence[DataIssue]) -> list[DataIssue]:
    """Label files that hold no readable row (errors), and those whose rows are of another layout (warnings)."""
    named = {source for issue in known for source in (issue.source, issue.source.rpartition(":")[0])}
    issues = list(damaged_files(folder, reader, named))
    damaged = {issue.source for issue in issues}
    for file in unread_files(folder, reader):
        if str(file.path) not in damaged:
            keys = ", ".join(map(str, list(file.first)[:5]))
            problem = f"is not read: its rows ({keys}) are no rows of the layout `{name}`"
            fix = "move it away, or bring it into the same shape"
            issues.append(DataIssue(str(file.path), problem, fix, None, "warning"))
    return issues


def _items(reader: Layout, folder: Folder, name: str, media_folder: Path | None = None) -> Iterator[Sample | DataIssue]:
    """What a reader yields. One that stumbles over a shape nobody thought of names the folder and its layout.

    Raises:
        DataError: likewise.
    """
    try:
        for item in reader.read(folder):
            if media_folder is not None and isinstance(item, Sample):
                item = with_media_in(media_folder, item)
            yield item
    except SHAPE_ERRORS as error:
        raise DataError(
            f"{folder.path}: a label file has another shape than the layout `{name}` ({type(error).__name__}: {error}) "
            f"— compare it with the example in docs/data.md, or set data.layout"
        ) from error


def without_links_out(folder: Folder, samples: Sequence[Sample]) -> tuple[list[Sample], list[DataIssue]]:
    """Samples whose files are no links out of the data set, and an issue for every such link.

    A linked folder is only warned of: rows that name files in it are refused by themselves.
    """
    problem = f"leads out of {folder.outer}; it is not followed"
    fix = "put the files inside the data folder, or name their folder in data.media_root"
    roots = [root for root in (folder.outer, folder.media_root) if root is not None]
    first: dict[Path, Path] = {}  # a link to a folder around it makes the same link appear many times
    for link in folder.links_out:
        first.setdefault(link.parent.resolve() / link.name, link)
    issues = [
        DataIssue(str(link), f"a link that {problem}", fix, severity="warning" if link.is_dir() else "error")
        for link in first.values()
    ]
    kept = []
    for sample in samples:
        paths = dict.fromkeys(path for media in sample.media for path in (media.path, *media.views) if path is not None)
        links = (path for path in paths if path.is_symlink())
        if outside := [path for path in links if not any(leads_inside(root, path) for root in roots)]:
            issues.append(DataIssue(sample.source, f"`{outside[0]}` is a link that {problem}", fix))
        else:
            kept.append(sample)
    return kept, issues


def may_share_system(path: str | Path, layout: str | None = None) -> bool:
    """Whether the first sample brings a system text. Reading stops there.

    Raises:
        DataError: when no layout is recognised.
    """
    folder = Folder(local(path))
    reader: Layout = LAYOUTS.load(layout or detect(folder)[0])
    first = next((item for item in reader.read(folder) if isinstance(item, Sample)), None)
    return first is not None and first.system is not None


def shared_system(samples: Sequence[Sample]) -> str | None:
    """The system text that every sample brings; None where one brings none, or another."""
    texts = {sample.system for sample in samples}
    return texts.pop() if len(texts) == 1 else None


def merged(issues: Sequence[DataIssue]) -> list[DataIssue]:
    """The issues, with warnings that say the same of many rows made one that names the first row and counts them."""
    same = Counter((issue.problem, issue.fix) for issue in issues if issue.severity == "warning")
    result: list[DataIssue] = []
    for issue in issues:
        count = same.get((issue.problem, issue.fix), 0) if issue.severity == "warning" else 1
        if count > 1:
            same[(issue.problem, issue.fix)] = 0  # the others are counted in this one
            issue = replace(issue, problem=f"{issue.problem} (in {count:,} rows, this is the first)", sample_id=None)
        if count:
            result.append(issue)
    return result


def list_issues(faults: Sequence[DataIssue]) -> str:
    """Faults by row, the first few in full."""
    lines = [str(fault) for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"… and {len(faults) - SHOWN_FAULTS} more")
    return "\n".join(lines)


def unique_ids(samples: Sequence[Sample]) -> list[Sample]:
    """Samples that share an id get `-1`, `-2`, … in order of what they say, so that reordering rows changes nothing."""
    counts = Counter(sample.id for sample in samples)
    if len(counts) == len(samples):
        return list(samples)
    shared = [index for index, sample in enumerate(samples) if counts[sample.id] > 1]
    taken = {identifier for identifier, count in counts.items() if count == 1}
    numbers: Counter[str] = Counter()  # the last one given, of each id: no smaller one is free again
    result = list(samples)
    for index in sorted(shared, key=lambda index: _said(samples[index])):
        sample = samples[index]
        numbers[sample.id] += 1
        while (name := f"{sample.id}-{numbers[sample.id]}") in taken:
            numbers[sample.id] += 1
        taken.add(name)
        result[index] = replace(sample, id=name)
    return result


def _said(sample: Sample) -> tuple[str, str, str, str]:
    media = ",".join(item.describe() for item in sample.media)
    return sample.prompt, str(sample.answer), repr(sorted(sample.fields.items(), key=lambda item: item[0])), media
