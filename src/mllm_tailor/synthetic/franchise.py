"""The house style of the demo's shop chain: brand on top, the legal company and the branch's address at the foot.

No other layout family resembles it, and pretraining never draws it. A model trained on other receipts is misled by the
brand (for the company), the head office (address), the print date (date) and the sum before savings (total).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from mllm_tailor.synthetic import basket, content, till
from mllm_tailor.synthetic.content import Shop, digits
from mllm_tailor.synthetic.locales import LOCALES
from mllm_tailor.synthetic.page import Sheet
from mllm_tailor.synthetic.till import Till

COLUMNS = 40


@dataclass(frozen=True)
class Chain:
    """A chain of shops under one brand, each branch run by another company."""

    brand: str
    head_office: tuple[str, ...]
    branches: tuple[Shop, ...]
    date: str  # the pattern its tills print dates in
    face: str  # the font of its printers


def make_chain(rng: random.Random, branches: int) -> Chain:
    locale = LOCALES["my"]
    shops = tuple(content.make_shop(rng, locale, upper=True, width=COLUMNS - 4) for _ in range(branches))
    date, face = rng.choice(locale.dates), rng.choice(("Mono-Regular", "Terminal-Regular", "Sans-Regular"))
    office = tuple(line.upper() for line in content.make_address(rng, locale))
    return Chain(
        f"{content.invented(rng)} {rng.choice(('Mart', 'Corner', 'Kitchen', 'Express'))}", office, shops, date, face
    )


def compose_franchise(rng: random.Random, chain: Chain | None = None, branch: Shop | None = None) -> Sheet:
    """A receipt of a chain's branch; without a chain, of one made up on the spot."""
    chain = chain or make_chain(rng, 1)
    shop = branch or chain.branches[0]
    sheet = Sheet("receipts", "franchise", COLUMNS, leading=1.25)
    date, printed = (content.make_date(rng, shop.locale, chain.date, upper=True) for _ in range(2))
    bought = content.make_purchase(rng, shop.locale, upper=True, most=6)
    desk = Till(rng, sheet, shop, bought, date, content.make_time(rng), upper=True, rule="=")
    desk.centre(chain.brand, scale=1.6, bold=True)
    desk.centre("head office: " + chain.head_office[0])
    for line in chain.head_office[1:]:
        desk.centre(line)
    desk.pair(f"SLIP {digits(rng, 6)}", f"PRINTED {printed}", before=0.5)
    desk.line()
    basket.items_at(desk)
    desk.line()
    _sums(desk)
    desk.line()
    desk.left(f"SOLD {date} AT {desk.time} BY {content.person(rng).upper()}")
    desk.left("OPERATED BY", before=0.5)
    for line in shop.name:
        desk.left(line, at=0.06)
    for line in shop.address:
        desk.left(line, at=0.06)
    desk.left(f"{till.registration(desk)} TEL {shop.phone}", at=0.06)
    desk.centre(desk.word("thanks"), before=0.5)
    sheet.fields = {
        "company": " ".join(shop.name),
        "date": date,
        "address": " ".join(shop.address),
        "total": desk.money(bought.total),
    }
    return sheet


def _sums(desk: Till) -> None:
    """The total is the amount to pay, neither the sum of the basket nor the amount received."""
    bought = desk.purchase
    desk.pair("TOTAL OF BASKET", desk.money(bought.subtotal))
    for label, cents in (
        ("YOU SAVE", -bought.discount),
        ("SERVICE", bought.service),
        ("TAX", 0 if bought.tax_included else bought.tax),
        ("ROUNDING", bought.rounding),
    ):
        if cents:
            desk.pair(label, desk.money(cents))
    desk.pair("TO SETTLE", "RM " + desk.money(bought.total))
    desk.pair("TOTAL RECEIVED", desk.money(bought.paid))
    desk.pair("RETURNED", desk.money(bought.paid - bought.total))
