"""What the blocks of one receipt share, and the blocks around the sums: header, when and where, tax table, footer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Unpack

from mllm_tailor.synthetic import content
from mllm_tailor.synthetic.content import Purchase, Shop, digits, money
from mllm_tailor.synthetic.locales import Locale
from mllm_tailor.synthetic.page import LEFT, MIDDLE, RIGHT, Cell, Look, Row, Sheet


@dataclass
class Till:
    """Everything the blocks of one receipt share."""

    rng: random.Random
    sheet: Sheet
    shop: Shop
    purchase: Purchase
    date: str
    time: str
    upper: bool
    rule: str

    @property
    def locale(self) -> Locale:
        return self.shop.locale

    def word(self, role: str) -> str:
        """One wording of a label, in the house's case."""
        text = self.rng.choice(self.locale.labels[role]).format(r=self.purchase.tax_rate)
        return text.upper() if self.upper else text

    def record_fact(self, name: str, value: str) -> str:
        """Remember a value that is about to be printed."""
        self.sheet.facts[name] = value
        return value

    def cashier(self) -> str:
        """A name for the cashier, recorded as a fact."""
        return self.record_fact("cashier", content.person(self.rng))

    def likely(self, chance: float) -> bool:
        return self.rng.random() < chance

    def money(self, cents: int, *, currency: bool = False) -> str:
        return (self.currency if currency else "") + money(self.locale, cents)

    @property
    def currency(self) -> str:
        signs = [sign for sign in self.locale.currencies if sign]
        return signs[0] if signs else ""

    def centre(self, text: str, **look: Unpack[Look]) -> None:
        self.sheet.add(Row((Cell(text, 0.5, MIDDLE),), **look))

    def left(self, text: str, at: float = 0.0, **look: Unpack[Look]) -> None:
        self.sheet.add(Row((Cell(text, at, LEFT),), **look))

    def pair(self, first: str, second: str, at: float = 1.0, **look: Unpack[Look]) -> None:
        self.sheet.add(Row((Cell(first, 0.0, LEFT), Cell(second, at, RIGHT)), **look))

    def line(self) -> None:
        """The separator between blocks in this style: a rule or a blank line."""
        self.sheet.add(Row(rule=self.rule, scale=0.8))


# --- header -----------------------------------------------------------------------------------------------------------


def header(till: Till, anchor: float = MIDDLE, *, big: bool = False, date_after_name: bool = False) -> None:
    """A logo or brand now and then, then company, registration, address and telephone lines."""
    at = 0.5 if anchor == MIDDLE else 0.0
    bold = till.likely(0.4)

    def put(text: str, **look: Unpack[Look]) -> None:
        till.sheet.add(Row((Cell(text, at, anchor),), **look))

    if till.likely(0.12):
        till.sheet.add(Row(art="logo"))
    if till.likely(0.25):
        put(
            till.rng.choice(
                (
                    till.shop.brand,
                    content.person(till.rng),
                    content.invented(till.rng),
                    "-- " + till.word("document") + " --",
                )
            )
        )
    scale = till.rng.choice((1.0, 1.15, 1.3)) if big else 1.0
    for text in till.shop.name:
        put(text, bold=bold, scale=scale)
    till.sheet.fields["company"] = " ".join(till.shop.name)
    if date_after_name:
        put(till.rng.choice((till.date, f"{till.date} {till.time}", f"{till.word('date')}: {till.date}")))
    if till.likely(0.7):
        put(registration(till))
    for text in till.shop.address:
        put(text)
    till.sheet.fields["address"] = " ".join(till.shop.address)
    for text in till.rng.sample(_contacts(till), k=till.rng.choice((1, 2, 2, 3))):
        put(text)


def registration(till: Till) -> str:
    number, label = till.shop.registration, till.word("company_id")
    return till.rng.choice((f"({number})", number, f"({label}: {number})", f"{label} : {number}", f"{label}. {number}"))


def _contacts(till: Till) -> list[str]:
    colon = till.rng.choice((": ", ":", " : ", " "))
    phone, fax = till.shop.phone, content.make_phone(till.rng, till.locale)
    tax = f"{till.word('tax_id')}{colon}{till.shop.tax_id}"
    both = f"{till.word('phone')}{colon}{phone} {till.word('fax')}{colon}{fax}"
    site = f"www.{till.shop.brand.split()[0].strip(chr(39) + '.').lower()}.com"
    single = f"{till.word('phone')}{colon}{phone}"
    return [single, tax if till.likely(0.7) else f"({tax})", both if till.likely(0.4) else site]


def title(till: Till) -> None:
    """TAX INVOICE and the like, plain, wide, big or underlined."""
    text = till.word("document")
    if text:
        looks: tuple[Look, ...] = (
            {},
            {},
            {"bold": True},
            {"wide": 1.5},
            {"scale": 1.3},
            {"scale": 1.4, "bold": True},
        )
        look = till.rng.choice(looks)
        look["before"] = till.rng.choice((0, 0.5, 1.0))
        till.centre(text, **look)


# --- who, when and where ----------------------------------------------------------------------------------------------


def _number(till: Till) -> str:
    prefix = till.rng.choice(("", "", "", "CS", "INV-", "A", "OR", "T0", "TD0", "#"))
    return till.record_fact("number", prefix + digits(till.rng, till.rng.choice((4, 6, 8, 10, 12))))


def meta_pairs(till: Till) -> None:
    """One label and value a row, values aligned at a stop or straight after the label."""
    stop = till.rng.choice((0.0, 0.26, 0.3, 0.36))
    colon = till.rng.choice((":", " :", ": "))
    when = f"{till.date} {till.time}" if till.likely(0.55) else till.date
    rows = [(till.word("number"), _number(till)), (till.word("date"), when)]
    rows += [(till.word("time"), till.time)] if when == till.date and till.likely(0.6) else []
    rows += [(till.word("cashier"), till.cashier())] if till.likely(0.8) else []
    rows += [(till.word("counter"), str(till.rng.randint(1, 30)))] if till.likely(0.3) else []
    if till.likely(0.4):
        till.rng.shuffle(rows)
    for label, value in rows:
        if stop:
            till.sheet.add(Row((Cell(label, 0.0, LEFT), Cell(f"{colon.strip()} {value}", stop, LEFT))))
        else:
            till.left(f"{label}{colon}{'' if colon == ': ' else ' '}{value}")


def meta_columns(till: Till) -> None:
    """Two labelled values a row, as tills with wide paper print them."""
    colon = till.rng.choice((": ", " : ", ":"))
    values = [
        (till.word("number"), _number(till)),
        (till.word("date"), till.date),
        (till.word("cashier"), till.cashier()),
        (till.word("time"), till.time),
        (till.word("counter"), str(till.rng.randint(1, 20))),
    ]
    if till.likely(0.5):
        values[:2], values[2:4] = [values[0], values[2]], [values[1], values[3]]
    for first, second in zip(values[0:4:2], values[1:4:2], strict=True):
        till.pair(colon.join(first), colon.join(second))
    if till.likely(0.4):
        till.left(colon.join(values[4]))


def meta_line(till: Till) -> None:
    """Time, number and date in one unlabelled row."""
    cells = [till.time, digits(till.rng, 6), till.date]
    if till.likely(0.4):
        cells.reverse()
    till.left(f"{till.word('number')} : {_number(till)}", before=0.5)
    stops = ((0.0, LEFT), (0.5, MIDDLE), (1.0, RIGHT))
    till.sheet.add(Row(tuple(Cell(text, *stop) for text, stop in zip(cells, stops, strict=True)), before=0.5))


def meta_short(till: Till) -> None:
    """Only a date with a time, left or centred, and a cashier."""
    text = f"{till.date} {till.time}" if till.likely(0.7) else f"{till.time} {till.date}"
    if till.likely(0.4):
        text = f"{till.word('date')}: {text}" if text.startswith(till.date) else text
    till.centre(text) if till.likely(0.5) else till.left(text)
    if till.likely(0.6):
        till.left(f"{till.word('cashier')}: {till.cashier()}")


def meta_late(till: Till) -> None:
    """The till's own line at the foot: date, time, shop, till and slip numbers, the operator below."""
    codes = f"SH{digits(till.rng, 2)} B{digits(till.rng, 3)}"
    first = till.rng.choice(
        (f"{till.date} {till.time} {codes}", f"{till.date} {till.time}", f"{till.time} {till.date} {codes}")
    )
    till.pair(
        first,
        f"T{till.rng.randint(1, 9)} R{digits(till.rng, 6)}" if till.likely(0.7) else digits(till.rng, 4),
        before=0.5,
    )
    till.left(f"{till.word('cashier')} {till.cashier()}")


# --- after the total --------------------------------------------------------------------------------------------------


def meta_number(till: Till) -> None:
    """Only the receipt's number; its date already stands in the header."""
    till.left(f"{till.word('number')} : {_number(till)}", before=0.5)


def extras(till: Till) -> None:
    """Further lines that tills print: card slips, points, tables, closing times."""
    rng, colon = till.rng, till.rng.choice((": ", " : ", " "))
    lines = [
        f"{till.word('member')}{colon}{content.person(rng)}", f"Points{colon}{rng.randint(0, 900)}",
        f"Card No{colon}XXXX XXXX XXXX {digits(rng, 4)}", f"App. Code{colon}{digits(rng, 6)}",
        f"Table {rng.randint(1, 60)}", f"Pax(s){colon}{rng.randint(0, 8)}", f"Ref{colon}{digits(rng, 12)}",
        f"Closed{colon}{till.date} {till.time}",
        f"Merchant ID{colon}{digits(rng, 10)}", f"Balance points{colon}{rng.randint(0, 90)}.{digits(rng, 2)}",
    ]  # fmt: skip
    for index, text in enumerate(rng.sample(lines, rng.randint(1, 4))):
        till.left(text.upper() if till.upper else text, before=0.5 if index == 0 else 0)


def tax_summary(till: Till) -> None:
    """The tax table: further plausible amounts that are not the total."""
    bought, rng, rate = till.purchase, till.rng, till.purchase.tax_rate
    zero, asian = money(till.locale, 0), till.locale.name in ("my", "sg")
    net = money(till.locale, bought.total - bought.rounding - bought.tax)
    stops = ((0.0, LEFT), (0.66, RIGHT), (1.0, RIGHT))
    currency = f"({till.currency})" if till.likely(0.6) and till.currency else ""
    tax = rng.choice(("Tax", "GST", "TAX")) if asian else till.word("tax").split()[0]
    code = (
        rng.choice((f"SR @ {rate}%", f"S = {rate}%", f"SR ({rate}%)"))
        if asian
        else rng.choice((f"{rate}%", f"A {rate}%"))
    )
    rows = [(till.word("summary"), till.word("amount").split("(")[0].strip() + currency, tax + currency)]
    rows.append((code, net, till.money(bought.tax)))
    if asian and till.likely(0.4):
        rows.append((rng.choice(("ZRL @ 0%", "Z = 0%", "ZR")), zero, zero))
    for index, texts in enumerate(rows):
        cells = tuple(Cell(text, *stop) for text, stop in zip(texts, stops, strict=True))
        till.sheet.add(Row(cells, before=0.5 if index == 0 else 0))
        if index == 0:
            till.line()


def footer(till: Till) -> None:
    """Thanks, conditions and now and then a barcode."""
    texts = till.rng.sample(till.locale.labels["notes"], k=till.rng.choice((0, 1, 1, 2, 3)))
    texts.insert(till.rng.choice((0, len(texts))), till.word("thanks"))
    for index, text in enumerate(texts):
        for part in content.wrap(text.upper() if till.upper else text, till.sheet.columns - 4):
            till.centre(part, before=0.5 if index == 0 else 0)
    if till.likely(0.12):
        till.sheet.add(Row(art="barcode", before=0.5))
