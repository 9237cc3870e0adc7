"""Multiple choice: each question brings its own options, and the answer is the letter of one of them.

Written as InternVL and LLaVA write it (Liu et al. 2023, arXiv 2310.03744, table 7): the options below the question, a
letter before each, and the letter alone as the reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import Field

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply, unread_parts

FIELD = "option"
MANY = 20  # rows
_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:[.:),\s]|$)")
_SAID = re.compile(r"\b(?:answer|option)(?: is)?:? *\(?([A-Z])\b")


Form = Literal["text", "letter", "index", "number"]
FORMS: tuple[Form, ...] = ("text", "letter", "index", "number")


class ChooseSettings(Settings):
    """`choose: {}` takes question, options and answer as the data has them."""

    answers: Form | None = Field(
        None,
        description="how the data name the right option: its text, its letter, its index from 0, or its number from 1; "
        "default: the way that fits all rows",
    )
    prompt: str = Field(
        "{question}\n{options}\nAnswer with the option's letter from the given choices directly.",
        description="the question asked; {question} and {options} become the sample's own",
    )


class Choose:
    """One letter out of those of the sample's own options."""

    name = "choose"
    metrics: tuple[str, ...] = ("exact", "parse_rate")
    field_names: tuple[str, ...] = (FIELD,)

    def __init__(self, settings: Any) -> None:
        self.settings = validate(ChooseSettings, settings or {}, "task.choose")

    def phrase(self, sample: Sample) -> Conversation:
        """Write the options below the question and, for a labelled sample, the letter."""
        if not sample.prompt.strip():
            raise DataError(f"{sample.source}: no question — add one, or choose another task")
        letters = self.choices(sample)
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, sample.options, strict=True))
        return asked(sample, self.settings.prompt, self.labels(sample).get(FIELD), {"options": listed})

    def resolve_from(self, samples: Iterable[Sample]) -> Choose:
        """With the way in which these samples name their answers, where one way fits all of them.

        Raises:
            DataError: naming a row, when two ways fit all of them and mean different options.
        """
        labelled = [sample for sample in samples if sample.answer is not None and len(sample.options) > 1]
        if self.settings.answers is not None or not labelled:
            return self
        read = {form: [_READERS[form](sample.answer or "", sample.options) for sample in labelled] for form in FORMS}
        counts = {form: sum(place is not None for place in read[form]) for form in FORMS}
        fitting = [form for form in FORMS if counts[form] == len(labelled)]
        if not fitting:  # the rows that the usual way does not fit are named when the data are validated
            usual = max(FORMS, key=lambda form: counts[form])
            return Choose(self.settings.model_dump() | {"answers": usual}) if counts[usual] else self
        first, *others = fitting
        for form in others:
            differing = [index for index in range(len(labelled)) if read[form][index] != read[first][index]]
            # Counted from 0 is the rule of data sets; that no answer is 0 by chance is rare in longer ones.
            counted = (first, form) == ("index", "number") and (len(labelled) < MANY or 0 in read[first])
            if differing and not counted:
                sample = labelled[differing[0]]
                raise DataError(
                    f"{sample.source}: the answer {sample.answer!r} is the {_shown(sample, read[first][differing[0]])} "
                    f"read as {first} and {_shown(sample, read[form][differing[0]])} read as {form}, and every row can "
                    "be read both ways — set task.choose.answers"
                )
        return Choose(self.settings.model_dump() | {"answers": first})

    def resolved_settings(self) -> dict[str, Any]:
        """Its settings with the way in which the data name answers."""
        return self.settings.model_dump()

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The letter of the right option, which the data name by its text, its letter or its index."""
        if sample.answer is None:
            return {}
        letters = self.choices(sample)
        forms = [self.settings.answers] if self.settings.answers else FORMS[:3]
        places = (_READERS[form](sample.answer, sample.options) for form in forms)
        place = next((place for place in places if place is not None), None)
        if place is not None:
            return {FIELD: letters[place]}
        way = f"read as {forms[0]}, as the other rows of the set are, " if self.settings.answers else ""
        raise DataError(
            f"{sample.source}: the answer {sample.answer[:80]!r} {way}is none of its {len(letters)} options — name one "
            f"by its text, its letter ({letters[0]} to {letters[-1]}) or its index (0 to {len(letters) - 1}), all rows "
            "in one way"
        )

    def choices(self, sample: Sample) -> Sequence[str]:
        """A letter for each option.

        Raises:
            DataError: naming the row, for fewer than 2 options or more than letters.
        """
        if not 2 <= len(sample.options) <= len(ascii_uppercase):
            raise DataError(
                f"{sample.source}: {len(sample.options)} options, where a question has 2 to {len(ascii_uppercase)} — "
                "add `options` (a list of texts), or choose another task"
            )
        return ascii_uppercase[: len(sample.options)]

    def unread(self, sample: Sample) -> Iterable[str]:
        """What neither the question nor the labels hold."""
        return unread_parts(sample, wording=self.settings.prompt, options="{options}" in self.settings.prompt)

    def schema(self) -> None:
        """Free text: which letters there are is the sample's own affair."""
        return None

    def parse(self, text: str) -> Reply:
        """The letter a reply is, begins with, or names as its answer.

        >>> Choose({}).parse("(B) a cat").fields, Choose({}).parse("The answer is C.").fields
        ({'option': 'B'}, {'option': 'C'})
        """
        found = _SAID.search(text) or _LETTER.match(text.strip())
        return Reply(fields={FIELD: found[1].upper()}) if found else Reply(problem="the reply names no letter")


def _text(answer: str, options: Sequence[str]) -> int | None:
    folded = [_fold(option) for option in options]
    return folded.index(_fold(answer)) if _fold(answer) in folded else None


def _letter(answer: str, options: Sequence[str]) -> int | None:
    letter = answer.strip().strip("().: ").upper()
    return ascii_uppercase.index(letter) if letter and letter in ascii_uppercase[: len(options)] else None


def _index(answer: str, options: Sequence[str]) -> int | None:
    said = answer.strip()
    return int(said) if said.isdecimal() and int(said) < len(options) else None


def _number(answer: str, options: Sequence[str]) -> int | None:
    said = answer.strip()
    return int(said) - 1 if said.isdecimal() and 0 < int(said) <= len(options) else None


def _shown(sample: Sample, place: int | None) -> str:
    return "nothing" if place is None else f"option {sample.options[place]!r}"


_READERS: Mapping[Form, Callable[[str, Sequence[str]], int | None]] = {
    "text": _text,
    "letter": _letter,
    "index": _index,
    "number": _number,
}


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())
