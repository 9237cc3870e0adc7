"""A metric and a layout in a package of their own: `tailor methods` lists both once the package is installed."""

from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.layouts.base import Layout
from mllm_tailor.scoring.metrics.base import ByField, Ratio


def read(folder):
    """`cat.png` beside `cat.note`, which holds what there is to say about it."""
    for note in sorted(folder.path.glob("*.note")):
        media = (Media("image", note.with_suffix(".png")),)
        yield Sample(note.stem, media, prompt="What is this?", answer=note.read_text().strip(), source=f"{note}:1")


NOTES = Layout(lambda folder: any(folder.path.glob("*.note")), read)
FIRST_LETTER = ByField(lambda label, reply, kind: Ratio(float(str(label)[:1] == str(reply)[:1]), 1.0))
