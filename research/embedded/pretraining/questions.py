"""Questions and answers about a page, in the words the product uses and in many others."""

from __future__ import annotations

import json

import numpy as np

from pretraining.pages import Page
from pretraining.words import choose

NAMES = {
    "company": ["vendor", "store", "shop", "seller", "merchant", "business_name", "company_name", "Company", "name"],
    "date": ["invoice_date", "day", "Date", "purchase_date", "issued"],
    "address": ["location", "Address", "store_address", "street_address"],
    "total": ["amount", "total_amount", "Total", "sum", "grand_total", "price"],
    "number": ["ticket_number", "reference", "No"],
    "time": ["hour", "Time"],
    "issuer": ["company", "provider"],
}
ABSENT = (
    "website",
    "iban",
    "passenger",
    "seat",
    "due_date",
    "buyer",
    "weight",
    "signature",
    "country",
    "plate",
    "discount_code",
    "email",
    "vat_id",
    "order_status",
)
WORDINGS = ("Extract {names} as JSON.",) * 6 + (
    "Extract the {names} in json format. Respond with a valid JSON only.",
    "Give {names} as JSON.",
    "Find {names}. Answer in JSON.",
    "Return a JSON object with {names}.",
    "JSON: {names}",
    "Please read {names} and answer as JSON.",
    "{names}?",
)
MAIN = ("company", "date", "address", "total")


def extraction(page: Page, rng: np.random.Generator, plain: bool = False) -> tuple[str, str]:
    """A question for some fields, under their own or other names, now and then for one the page lacks."""
    fields = page.fields
    keys = [key for key in MAIN if key in fields] if page.kind == "receipts" else list(fields)[:6]
    if not plain and not (page.kind == "receipts" and rng.random() < 0.45):
        keys = [str(key) for key in rng.permutation(keys)][: int(rng.integers(1, len(keys) + 1))]
    asked: dict[str, str] = {}
    for key in keys:
        other = not plain and rng.random() < 0.2 and key in NAMES
        asked[choose(rng, NAMES[key]) if other else key] = fields[key]
    if not plain and rng.random() < 0.1:
        name = choose(rng, ABSENT)
        if name not in fields:
            entries = list(asked.items())
            entries.insert(int(rng.integers(len(entries) + 1)), (name, ""))
            asked = dict(entries)
    wording = WORDINGS[0] if plain else choose(rng, WORDINGS)
    names = list(asked)
    listed = (
        ", ".join(names)
        if rng.random() < 0.85 or len(names) == 1 or plain
        else ", ".join(names[:-1]) + " and " + names[-1]
    )
    return wording.replace("{names}", listed), json.dumps(asked, ensure_ascii=False)


def single(page: Page, rng: np.random.Generator) -> tuple[str, str]:
    key = choose(rng, list(page.fields))
    name = choose(rng, NAMES[key]) if key in NAMES and rng.random() < 0.2 else key
    return choose(rng, ["What is the {}?", "{}?", "Tell me the {}.", "Which {}?"]).format(name), page.fields[key]


def line(page: Page, rng: np.random.Generator) -> tuple[str, str]:
    """Read one line, named by its number from the top or the bottom, or a few after it."""
    index = int(rng.integers(len(page.lines)))
    count = int(rng.integers(1, 6))
    if rng.random() < 0.3:
        return f"Read {count} lines from the top.", "\n".join(page.lines[:count])
    if rng.random() < 0.3 and index + 1 < len(page.lines):
        return f"Read the line after: {page.lines[index]}", page.lines[index + 1]
    return f"Read the line that begins: {page.lines[index][:6]}", page.lines[index]


def whole(page: Page, rng: np.random.Generator) -> tuple[str, str]:
    return choose(rng, ["Read the text.", "Read the text.", "Transcribe.", "What does it say?"]), "\n".join(page.lines)


def passage(page: Page, rng: np.random.Generator, start: int | None = None, count: int = 0) -> tuple[str, str]:
    """Read on from a line named by its beginning: long answers, each byte of which is to be copied."""
    start = int(rng.integers(len(page.lines))) if start is None else start
    count = count or int(rng.integers(2, 9))
    return f"Read {count} lines from: {page.lines[start][:8]}", "\n".join(page.lines[start : start + count])


def passages(page: Page, rng: np.random.Generator) -> list[tuple[str, str]]:
    """The page in pieces of one to eight lines, each asked for once, in random order."""
    found, start = [], 0
    while start < len(page.lines):
        count = min(int(rng.integers(1, 9)), len(page.lines) - start)
        found.append(passage(page, rng, start, count))
        start += count
    return [found[index] for index in rng.permutation(len(found))]


def conversation(page: Page, rng: np.random.Generator, most: int = 1000) -> tuple[tuple[str, str], ...]:
    """Turns about one page: fields first or last, and between them readings that do not repeat each other.

    Several answers share one picture: what the picture costs is paid once. At most `most` characters of answers.
    """
    asks = passages(page, rng) if rng.random() < 0.7 else [whole(page, rng) if rng.random() < 0.4 else line(page, rng)]
    if rng.random() < 0.8:
        fields = extraction(page, rng) if rng.random() < 0.85 else single(page, rng)
        asks = [fields, *asks] if rng.random() < 0.5 else [*asks[:3], fields]
    turns, left = [], most
    for question, answer in asks:
        if answer.isascii() and len(answer) <= left:
            turns.append((question, answer))
            left -= len(answer)
    return tuple(turns)
