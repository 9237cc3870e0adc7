"""Till receipts: the layout families, each a choice of blocks in a certain order."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mllm_tailor.synthetic import basket, content, till
from mllm_tailor.synthetic.franchise import compose_franchise
from mllm_tailor.synthetic.page import LEFT, Sheet
from mllm_tailor.synthetic.till import Till

Block = Callable[[Till], None]
FIELDS = ("company", "date", "address", "total")
EUROPE = ("de", "fr", "es", "it")


@dataclass(frozen=True)
class Family:
    """One house style: what comes in which order, and how often some things come at all."""

    header: Block
    meta: Block
    items: Block
    totals: Block
    columns: tuple[int, int] = (36, 50)
    upper: float = 0.5  # everything in capitals
    summary: float = 0.4  # a tax table
    meta_last: bool = False
    title_first: bool = False
    locales: tuple[str, ...] = ()  # empty: any


left_header = partial(till.header, anchor=LEFT)
big_header = partial(till.header, big=True)
dated_header = partial(till.header, date_after_name=True)

FAMILIES = {
    "stationer": Family(till.header, till.meta_pairs, basket.items_code_above, basket.totals_right, upper=0.7),
    "minimart": Family(till.header, till.meta_line, basket.items_at, basket.totals_spread, upper=0.8, summary=0.7),
    "cafe": Family(big_header, till.meta_pairs, basket.items_plain, basket.totals_big, upper=0.2),
    "kopitiam": Family(till.header, till.meta_columns, basket.items_columns, basket.totals_spread, summary=0.6),
    "hardware": Family(left_header, till.meta_columns, basket.items_columns, basket.totals_right, upper=0.6),
    "houseware": Family(
        till.header,
        till.meta_late,
        basket.items_code_below,
        basket.totals_spread,
        upper=0.9,
        summary=0.7,
        meta_last=True,
    ),
    "grill": Family(till.header, till.meta_pairs, basket.items_tax_first, basket.totals_inline, upper=0.6, summary=0.8),
    "canteen": Family(dated_header, till.meta_number, basket.items_plain, basket.totals_inline, upper=0.6, summary=0.6),
    "supermarket": Family(
        till.header,
        till.meta_late,
        basket.items_code_above,
        basket.totals_right,
        upper=0.8,
        summary=0.7,
        meta_last=True,
    ),
    "paper": Family(left_header, till.meta_short, basket.items_numbered, basket.totals_right, upper=0.3, summary=0.6),
    "cash_bill": Family(
        till.header, till.meta_columns, basket.items_boxed, basket.totals_right, upper=0.4, summary=0.1
    ),
    "petrol": Family(
        till.header,
        till.meta_short,
        basket.items_code_below,
        basket.totals_big,
        columns=(32, 40),
        upper=0.7,
        summary=0.5,
    ),
    "pharmacy": Family(big_header, till.meta_columns, basket.items_code_above, basket.totals_spread, upper=0.4),
    "bakery": Family(till.header, till.meta_short, basket.items_columns, basket.totals_big, upper=0.4),
    "diner": Family(
        big_header, till.meta_short, basket.items_plain, basket.totals_spread, summary=0.0, locales=("us", "uk", "sg")
    ),
    "euro_till": Family(
        till.header, till.meta_late, basket.items_plain, basket.totals_big, upper=0.3, meta_last=True, locales=EUROPE
    ),
    "euro_shop": Family(
        till.header, till.meta_pairs, basket.items_columns, basket.totals_spread, upper=0.3, locales=(*EUROPE, "uk")
    ),
    "counter": Family(left_header, till.meta_line, basket.items_code_below, basket.totals_inline, title_first=True),
    "slip": Family(
        till.header, till.meta_pairs, basket.items_inline, basket.totals_spread, title_first=True, summary=0.6
    ),
    "wide_till": Family(left_header, till.meta_columns, basket.items_tax_first, basket.totals_big, columns=(46, 60)),
}


def compose_receipt(rng: random.Random, layout: str) -> Sheet:
    """A receipt of one family; fields company, date, address and total are exactly what is printed."""
    family = FAMILIES[layout]
    columns = rng.randint(*family.columns)
    upper = rng.random() < family.upper
    locale = content.pick_locale(rng, family.locales)
    sheet = Sheet("receipts", layout, columns, leading=rng.choice((1.1, 1.2, 1.3, 1.4, 1.6)))
    desk = Till(
        rng,
        sheet,
        content.make_shop(rng, locale, upper=upper, width=columns - rng.choice((2, 6, 10))),
        content.make_purchase(rng, locale, upper=upper or rng.random() < 0.5, most=14),
        content.make_date(rng, locale, upper=upper),
        content.make_time(rng),
        upper,
        rng.choice(("-", "-", "-", "=", ".", "*", "_", "line", "line", "")),
    )
    blocks = [family.header, till.title, family.meta]
    if family.title_first:
        blocks = [till.title, family.header, family.meta]
    if family.meta_last:
        blocks.remove(family.meta)
    for block in blocks:
        block(desk)
    desk.line()
    family.items(desk)
    desk.line()
    family.totals(desk)
    if rng.random() < family.summary:
        till.tax_summary(desk)
    if family.meta_last:
        family.meta(desk)
    if rng.random() < 0.35:
        till.extras(desk)
    till.footer(desk)
    sheet.fields["date"] = desk.date
    sheet.fields = {key: sheet.fields[key] for key in FIELDS}
    return sheet


LAYOUTS: dict[str, Callable[[random.Random], Sheet]] = {
    name: partial(compose_receipt, layout=name) for name in FAMILIES
} | {"franchise": compose_franchise}
DEMO_LAYOUTS = ("franchise",)  # of the demo's shop chain; never drawn unless asked for by name
