"""Transcription as a second task: a sample's own transcript, where the data brings one (`ocr`: text with its place)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mllm_tailor.core.conversation import Conversation, Exchange, as_conversation
from mllm_tailor.core.sample import Sample

TRANSCRIPTS = ("ocr", "transcript", "ocr_text", "page_text", "words")  # columns that hold the text of a page
READ_PROMPT = "Read the text."  # the embedded model was taught these words


def with_transcriptions(
    phrased: Sequence[Conversation], samples: Sequence[Sample], share: float, seed: int, *, as_turns: bool
) -> tuple[tuple[Conversation, ...], tuple[Conversation, ...]]:
    """A seeded `share` of the samples that have a transcript is also asked to be read from top to bottom.

    `phrased` are the samples as conversations, in the same order. Returned are these and the readings: conversations
    of their own or, with `as_turns`, further turns of the first ones.
    """
    able = [sample for sample in samples if sample.extra.get("ocr")]
    ranked = sorted(able, key=lambda sample: hashlib.sha256(f"{seed}:read:{sample.id}".encode()).digest())
    chosen = ranked[: round(share * len(able))]
    if not as_turns:
        return tuple(phrased), tuple(map(_reading, chosen))
    ids = {sample.id for sample in chosen}
    return tuple(
        replace(conversation, further=(Exchange(READ_PROMPT, _text(sample)),)) if sample.id in ids else conversation
        for conversation, sample in zip(phrased, samples, strict=True)
    ), ()


def stated_text(sample: Sample) -> str | None:
    """The transcript that the data bring beside the labels: texts with quads, a list of texts, or one text."""
    for name in TRANSCRIPTS:
        value = sample.extra.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, list) and value:
            if all(isinstance(word, Mapping) and "quad" in word and "text" in word for word in value):
                return "\n".join(rows_of(value))
            texts = [word.get("text") if isinstance(word, Mapping) else word for word in value]
            return "\n".join(text for text in texts if isinstance(text, str)) or None
    return None


def _reading(sample: Sample) -> Conversation:
    reading = replace(
        sample, id=f"{sample.id}#read", prompt=READ_PROMPT, answer=_text(sample), history=(), positions=()
    )
    return as_conversation(replace(reading, fields={}, extra={}))


def _text(sample: Sample) -> str:
    return "\n".join(rows_of(sample.extra["ocr"]))


def rows_of(words: Sequence[Mapping[str, Any]]) -> list[str]:
    """Printed rows, top to bottom, from texts with their quads (x and y of four corners, from the top left).

    A text belongs to the row whose middle lies within its height; the texts of a row are joined from left to right.
    """
    rows: list[list[tuple[float, str]]] = []
    middles: list[float] = []
    for left, top, bottom, text in sorted(map(_place, words), key=lambda place: place[1] + place[2]):
        if rows and top <= middles[-1] <= bottom:
            rows[-1].append((left, text))
        else:
            rows.append([(left, text)])
            middles.append((top + bottom) / 2)
    return [" ".join(text for _, text in sorted(row)) for row in rows]


def _place(word: Mapping[str, Any]) -> tuple[float, float, float, str]:
    """Left, top, bottom, text."""
    corners = [float(value) for value in word["quad"]]
    return min(corners[0::2]), min(corners[1::2]), max(corners[1::2]), str(word["text"])
