"""Multiple choice: each question brings its own options, and the answer is the letter of one of them.

Written as InternVL and LLaVA write it (Liu et al. 2023, arXiv 2310.03744, table 7): the options below the question, a
letter before each, and the letter alone as the reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from pydantic import Field

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply

FIELD = "option"
_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:[.:),\s]|$)")
_SAID = re.compile(r"\b(?:answer|option)(?: is)?:? *\(?([A-Z])\b")


class ChooseSettings(Settings):
    """`choose: {}` takes question, options and answer as the data has them."""

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

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The letter of the right option, which the data may name by its text, its letter, or its place from 0."""
        if sample.answer is None:
            return {}
        letters, said = self.choices(sample), _fold(sample.answer)
        texts = [_fold(option) for option in sample.options]
        if said in texts:
            return {FIELD: letters[texts.index(said)]}
        letter = said.strip("().: ").upper()
        if letter in letters:
            return {FIELD: letter}
        if said.isdecimal() and int(said) < len(letters):
            return {FIELD: letters[int(said)]}
        raise DataError(
            f"{sample.source}: the answer {sample.answer[:80]!r} is none of its {len(letters)} options — name one by "
            f"its text, its letter ({letters[0]} to {letters[-1]}) or its place (0 to {len(letters) - 1})"
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


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())
