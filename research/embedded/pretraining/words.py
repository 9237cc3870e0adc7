"""Texts of receipts and forms from nothing: companies, addresses, dates, amounts, items, codes."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

LEXICON: dict[str, list[str]] = json.loads(Path(__file__).with_name("lexicon.json").read_text())


@functools.cache
def dictionary() -> tuple[str, ...]:
    """English words of the Debian package wamerican, letters only; empty where it is not installed."""
    path = Path("/usr/share/dict/words")
    return (
        tuple(w for w in path.read_text().split() if w.isascii() and w.isalpha() and len(w) < 13)
        if path.exists()
        else ()
    )


def choose(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def syllables(rng: np.random.Generator, low: int = 1, high: int = 4) -> str:
    """An invented pronounceable word, upper case."""
    count = int(rng.integers(low, high))
    return "".join(
        choose(rng, LEXICON["onsets"]) + choose(rng, LEXICON["vowels"]) + choose(rng, LEXICON["codas"])
        for _ in range(count)
    ).upper()


def name_word(rng: np.random.Generator) -> str:
    words = dictionary()
    return syllables(rng) if rng.random() < 0.55 or not words else choose(rng, words).upper()


def company(rng: np.random.Generator) -> str:
    names = [name_word(rng) for _ in range(rng.integers(1, 4))]
    if rng.random() < 0.12:
        names = ["".join(choose(rng, "ABCDEFGHJKLMNPRSTVWYZ") for _ in range(rng.integers(2, 5))), *names[:1]]
    if rng.random() < 0.1:
        names.insert(1, choose(rng, ["&", "AND", "N", "-"]))
        names.append(name_word(rng))
    trades = [choose(rng, LEXICON["trades"]) for _ in range(rng.integers(0, 3))]
    return " ".join([*names, *trades, choose(rng, LEXICON["endings"])]).strip()


def digits(rng: np.random.Generator, count: int) -> str:
    return "".join(choose(rng, "0123456789") for _ in range(count))


def code(rng: np.random.Generator) -> str:
    """An identifier such as CS-00012345, A1/0023 or 000187-M."""
    parts = []
    for _ in range(rng.integers(1, 4)):
        kind = rng.random()
        parts.append(
            digits(rng, int(rng.integers(1, 8)))
            if kind < 0.6
            else "".join(choose(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.integers(1, 4)))
        )
    return choose(rng, ["", "-", "/", "", ":", "#"]).join(parts)


def address_parts(rng: np.random.Generator) -> list[str]:
    """The comma-separated pieces of a postal address, Malaysian in most cases."""
    number = f"{rng.integers(1, 400)}"
    if rng.random() < 0.4:
        number += choose(
            rng,
            [
                "A",
                "B",
                "-1",
                "-G",
                "G",
                f"-{rng.integers(2, 40)}",
                f" & {rng.integers(1, 90)}",
                f",{rng.integers(1, 90)}",
            ],
        )
    first = choose(rng, ["", "", "NO ", "NO. ", "NO.", "LOT ", "NO:", "LOT NO. ", "PT "]) + number
    street = choose(rng, LEXICON["streets"]) + " " + (name_word(rng) if rng.random() < 0.7 else syllables(rng, 2, 4))
    if rng.random() < 0.6:
        street += choose(
            rng,
            [
                f" {rng.integers(1, 60)}",
                f" {rng.integers(1, 40)}/{rng.integers(1, 60)}",
                f" {name_word(rng)}",
                f" {rng.integers(1, 20)}/{rng.integers(1, 40)}{choose(rng, 'ABCDEF')}",
                f" U{rng.integers(1, 12)}/{rng.integers(1, 40)}",
                f" SS{rng.integers(1, 26)}/{rng.integers(1, 60)}",
                f" USJ {rng.integers(1, 26)}",
            ],
        )
    parts = [first, street] if rng.random() < 0.75 else [first + " " + street]
    if rng.random() < 0.2:
        parts.insert(
            0,
            choose(
                rng,
                [
                    "GROUND FLOOR",
                    "LEVEL 2",
                    "1ST FLOOR",
                    f"LOT {rng.integers(1, 99)}",
                    f"UNIT {rng.integers(1, 30)}-{rng.integers(1, 20)}",
                    f"{name_word(rng)} MALL",
                    f"BLOCK {choose(rng, 'ABCDEFG')}",
                ],
            ),
        )
    if rng.random() < 0.8:
        parts.append(choose(rng, LEXICON["areas"]) + " " + " ".join(name_word(rng) for _ in range(rng.integers(1, 3))))
    town = choose(rng, LEXICON["towns"]) if rng.random() < 0.7 else name_word(rng)
    postcode = digits(rng, 5)
    parts += [f"{postcode} {town}"] if rng.random() < 0.85 else [postcode, town]
    if rng.random() < 0.7:
        parts.append(choose(rng, LEXICON["states"]))
    if rng.random() < 0.1:
        parts = [
            f"{rng.integers(1, 999)} {name_word(rng)} {choose(rng, ['STREET', 'ROAD', 'AVENUE', 'LANE', 'DRIVE'])}",
            name_word(rng),
            f"{choose(rng, 'ABCDENSW')}{choose(rng, 'ABCDENSW')} {digits(rng, 5)}",
        ]
    return parts


def date(rng: np.random.Generator) -> str:
    """A date in one of about fifteen ways."""
    day, month, year = int(rng.integers(1, 29)), int(rng.integers(1, 13)), int(rng.integers(2009, 2026))
    name = LEXICON["months"][month - 1]
    name = choose(rng, [name, name.title()])
    return choose(
        rng,
        [
            f"{day:02}/{month:02}/{year}",
            f"{day:02}/{month:02}/{year}",
            f"{day:02}/{month:02}/{year}",
            f"{day:02}-{month:02}-{year}",
            f"{day:02}-{month:02}-{year}",
            f"{day:02}/{month:02}/{year % 100:02}",
            f"{day:02}-{month:02}-{year % 100:02}",
            f"{day:02}.{month:02}.{year}",
            f"{day} {name} {year}",
            f"{day:02} {name} {year}",
            f"{day:02}-{name}-{year}",
            f"{year}-{month:02}-{day:02}",
            f"{year}/{month:02}/{day:02}",
            f"{day}/{month}/{year}",
            f"{month:02}/{day:02}/{year}",
            f"{day:02}/{name}/{year}",
            f"{name} {day}, {year}",
            f"{day:02}-{name}-{year % 100:02}",
            f"{day} {name} {year % 100:02}",
        ],
    )


def clock(rng: np.random.Generator) -> str:
    hour, minute, second = rng.integers(0, 24), rng.integers(0, 60), rng.integers(0, 60)
    return choose(
        rng,
        [
            f"{hour:02}:{minute:02}",
            f"{hour:02}:{minute:02}:{second:02}",
            f"{hour % 12}:{minute:02} PM",
            f"{hour % 12}:{minute:02}:{second:02} AM",
            f"{hour:02}:{minute:02}PM",
        ],
    )


def amount(rng: np.random.Generator) -> str:
    value = round(float(np.exp(rng.normal(2.8, 1.2))), 2)
    return f"{value:,.2f}" if rng.random() < 0.9 else f"{value:.2f}"


def phone(rng: np.random.Generator) -> str:
    return choose(
        rng,
        [
            f"0{rng.integers(1, 10)}-{digits(rng, 7)}",
            f"+60{rng.integers(1, 10)}-{digits(rng, 4)} {digits(rng, 4)}",
            f"0{rng.integers(1, 10)}-{digits(rng, 4)} {digits(rng, 4)}",
            digits(rng, 10),
            f"({digits(rng, 2)}) {digits(rng, 8)}",
        ],
    )


def item(rng: np.random.Generator) -> str:
    words = [choose(rng, LEXICON["items"]) if rng.random() < 0.7 else name_word(rng) for _ in range(rng.integers(1, 5))]
    if rng.random() < 0.3:
        words.append(
            choose(
                rng,
                [
                    f"{rng.integers(1, 900)}G",
                    f"{rng.integers(1, 900)}ML",
                    f"{rng.integers(1, 20)}KG",
                    f"X{rng.integers(1, 20)}",
                    f"#{digits(rng, 3)}",
                    f"({name_word(rng)})",
                    f"{rng.integers(1, 90)}*{rng.integers(1, 90)}",
                    f'{rng.integers(1, 9)}/{rng.integers(2, 9)}"',
                ],
            )
        )
    return " ".join(words)


def recase(rng: np.random.Generator, text: str) -> str:
    kind = rng.random()
    return text if kind < 0.6 else text.title() if kind < 0.85 else text.lower() if kind < 0.9 else text.capitalize()


def random_string(rng: np.random.Generator) -> str:
    """Characters without any meaning, all of printable ASCII."""
    return "".join(chr(c) for c in rng.integers(33, 127, int(rng.integers(1, 10))))


def snippet(rng: np.random.Generator) -> str:
    """A piece of text of any kind, for dense reading."""
    kind = int(rng.integers(1, 12))
    if kind == 1 or (kind == 2 and rng.random() < 0.5):
        return random_string(rng)
    if kind == 3:
        return code(rng)
    if kind == 4:
        return choose(rng, ["", "RM", "$", "RM "]) + amount(rng)
    if kind == 5:
        return date(rng) + " " + clock(rng)
    if kind == 6:
        return recase(rng, ", ".join(address_parts(rng)[: int(rng.integers(1, 4))]))
    if kind == 7:
        return recase(rng, company(rng))
    if kind == 8:
        return choose(rng, ["TEL: ", "Tel: ", "FAX:", "", "GST ID : ", "Invoice No: "]) + phone(rng)
    if kind == 9:
        return recase(rng, choose(rng, LEXICON["chatter"]))
    return recase(rng, item(rng))
