"""Till receipts: header, item, totals and footer blocks, and the layout families put together from them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mllm_tailor.data.drawn import content
from mllm_tailor.data.drawn.content import Purchase, Shop, digits, money
from mllm_tailor.data.drawn.locales import Locale
from mllm_tailor.data.drawn.page import LEFT, MIDDLE, RIGHT, Cell, Row, Sheet


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

    def likely(self, chance: float) -> bool:
        return self.rng.random() < chance

    def money(self, cents: int, currency: bool = False) -> str:
        return (self.currency if currency else "") + money(self.locale, cents)

    @property
    def currency(self) -> str:
        signs = [sign for sign in self.locale.currencies if sign]
        return signs[0] if signs else ""

    def centre(self, text: str, **look: object) -> None:
        self.sheet.add(Row((Cell(text, 0.5, MIDDLE),), **look))

    def left(self, text: str, at: float = 0.0, **look: object) -> None:
        self.sheet.add(Row((Cell(text, at, LEFT),), **look))

    def pair(self, first: str, second: str, at: float = 1.0, **look: object) -> None:
        self.sheet.add(Row((Cell(first, 0.0, LEFT), Cell(second, at, RIGHT)), **look))

    def line(self, before: float = 0.0) -> None:
        if self.rule:
            self.sheet.add(Row(rule=self.rule, before=before, scale=0.8))


# --- header -----------------------------------------------------------------------------------------------------------


def header(till: Till, anchor: float = MIDDLE, big: bool = False, date_after_name: bool = False) -> None:
    """A logo or brand now and then, then company, registration, address and telephone lines."""
    at = 0.5 if anchor == MIDDLE else 0.0
    bold = till.likely(0.4)

    def put(text: str, **look: object) -> None:
        till.sheet.add(Row((Cell(text, at, anchor),), **look))

    if till.likely(0.12):
        till.sheet.add(Row(art="logo"))
    if till.likely(0.25):
        put(till.rng.choice((till.shop.brand, content.person(till.rng), content.invented(till.rng), "-- " + till.word("document") + " --")))
    scale = till.rng.choice((1.0, 1.15, 1.3)) if big else 1.0
    for text in till.shop.name:
        put(text, bold=bold, scale=scale)
    till.sheet.fields["company"] = " ".join(till.shop.name)
    if date_after_name:
        put(till.rng.choice((till.date, f"{till.date} {till.time}", f"{till.word('date')}: {till.date}")))
    if till.likely(0.7):
        put(_registration(till))
    for text in till.shop.address:
        put(text)
    till.sheet.fields["address"] = " ".join(till.shop.address)
    for text in till.rng.sample(_contacts(till), k=till.rng.choice((1, 2, 2, 3))):
        put(text)


def _registration(till: Till) -> str:
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
        look = till.rng.choice(({}, {}, {"bold": True}, {"wide": 1.5}, {"scale": 1.3}, {"scale": 1.4, "bold": True}))
        till.centre(text, before=till.rng.choice((0, 0.5, 1.0)), **look)


# --- who, when and where ----------------------------------------------------------------------------------------------


def _number(till: Till) -> str:
    prefix = till.rng.choice(("", "", "", "CS", "INV-", "A", "OR", "T0", "TD0", "#"))
    return prefix + digits(till.rng, till.rng.choice((4, 6, 8, 10, 12)))


def meta_pairs(till: Till) -> None:
    """One label and value a row, values aligned at a stop or straight after the label."""
    stop = till.rng.choice((0.0, 0.26, 0.3, 0.36))
    colon = till.rng.choice((":", " :", ": "))
    when = f"{till.date} {till.time}" if till.likely(0.55) else till.date
    rows = [(till.word("number"), _number(till)), (till.word("date"), when)]
    rows += [(till.word("time"), till.time)] if when == till.date and till.likely(0.6) else []
    rows += [(till.word("cashier"), content.person(till.rng))] if till.likely(0.8) else []
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
        (till.word("number"), _number(till)), (till.word("date"), till.date), (till.word("cashier"), content.person(till.rng)),
        (till.word("time"), till.time), (till.word("counter"), str(till.rng.randint(1, 20))), (till.word("member"), "CASH"),
    ]  # fmt: skip
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
        till.left(f"{till.word('cashier')}: {content.person(till.rng)}")


def meta_late(till: Till) -> None:
    """The till's own line at the foot: date, time, shop, till and slip numbers, the operator below."""
    codes = f"SH{digits(till.rng, 2)} B{digits(till.rng, 3)}"
    first = till.rng.choice((f"{till.date} {till.time} {codes}", f"{till.date} {till.time}", f"{till.time} {till.date} {codes}"))
    till.pair(first, f"T{till.rng.randint(1, 9)} R{digits(till.rng, 6)}" if till.likely(0.7) else digits(till.rng, 4), before=0.5)
    till.left(f"{till.word('cashier')} {content.person(till.rng)}")


# --- what was bought --------------------------------------------------------------------------------------------------


def _code(till: Till) -> str:
    return till.rng.choice(("SR", "S", "ZRL", "Z", "T", "*S")) if till.purchase.tax_rate else till.rng.choice(("Z", "ZRL"))


def _fitted(till: Till, text: str, columns: float) -> str:
    return text[: max(6, int(columns))].strip()


def items_columns(till: Till) -> None:
    """Headings and one row an item: quantity, description, price, amount."""
    columns, with_price = till.sheet.columns, till.likely(0.5)
    quantity_first = till.likely(0.6)
    stops = (0.0, 0.12) if quantity_first else (0.56, 0.0)
    price = ((0.8, RIGHT),) if with_price else ()
    heads = [Cell(till.word("quantity"), stops[0], LEFT if quantity_first else MIDDLE), Cell(till.word("description"), stops[1], LEFT)]
    heads += [Cell(till.word("price"), *stop) for stop in price] + [Cell(till.word("amount"), 1.0, RIGHT)]
    till.sheet.add(Row(tuple(sorted(heads, key=lambda cell: cell.at)), before=0.3))
    till.line()
    room = columns * (0.62 if not with_price else 0.48) - (0 if quantity_first else 6)
    for item in till.purchase.items:
        cells = [Cell(str(item.quantity), stops[0], LEFT if quantity_first else MIDDLE), Cell(_fitted(till, item.text, room), stops[1], LEFT)]
        cells += [Cell(till.money(item.price), *stop) for stop in price] + [Cell(till.money(item.amount), 1.0, RIGHT)]
        till.sheet.add(Row(tuple(sorted(cells, key=lambda cell: cell.at))))


def items_code_below(till: Till) -> None:
    """Description on its own row, then code, quantity x price and amount with a tax code."""
    tax, times = _code(till), till.rng.choice((" X ", " x ", "x", " @ "))
    suffix = f" {tax}" if till.likely(0.6) else ""
    with_code = till.likely(0.7)
    for item in till.purchase.items:
        till.left(_fitted(till, item.text, till.sheet.columns * 0.85))
        first = [Cell(item.code, 0.02, LEFT)] if with_code else []
        middle = Cell(f"{item.quantity}{times}{money(till.locale, item.price)}", 0.7, RIGHT)
        till.sheet.add(Row((*first, middle, Cell(till.money(item.amount) + suffix, 1.0, RIGHT))))


def items_code_above(till: Till) -> None:
    """Barcode and description in one row, the sums in the next; headings above."""
    heads = (Cell(till.word("description"), 0.0, LEFT), Cell(till.word("price"), 0.6, RIGHT), Cell(till.word("amount"), 1.0, RIGHT))
    till.sheet.add(Row(heads, before=0.3))
    till.line()
    pieces, discount = till.rng.choice((" PC", " UNIT", "", " PCS")), till.likely(0.3)
    for item in till.purchase.items:
        till.left(_fitted(till, f"{item.code} {item.text}", till.sheet.columns * 0.95))
        cells = [Cell(f"{item.quantity}{pieces}", 0.12, LEFT), Cell(f"{money(till.locale, item.price)}", 0.6, RIGHT)]
        cells += [Cell("0.00", 0.78, RIGHT)] if discount else []
        till.sheet.add(Row((*cells, Cell(f"{till.money(item.amount)}", 1.0, RIGHT))))


def items_at(till: Till) -> None:
    """Code, description and amount; several of one kind are explained in a second row."""
    currency, tail = till.currency, till.rng.choice(("", " S", " *", " T"))
    for item in till.purchase.items:
        text = _fitted(till, f"{item.code[:4]} {item.text}", till.sheet.columns * 0.68)
        till.pair(text, till.money(item.amount, True) + tail)
        if item.quantity > 1:
            till.left(f"@{item.quantity} x {currency} {money(till.locale, item.price)}", at=0.05)


def items_plain(till: Till) -> None:
    """Cafe style: quantity, name, amount, no headings."""
    for item in till.purchase.items:
        name = _fitted(till, item.text, till.sheet.columns * 0.66)
        till.pair(f"{item.quantity} {name}" if till.likely(0.9) else name, till.money(item.amount))


def items_tax_first(till: Till) -> None:
    """Tax code, quantity, unit price and amount; the name indented below."""
    tax = _code(till)
    heads = ("TAX", till.word("quantity"), till.word("price"), till.word("amount"))
    stops = ((0.0, LEFT), (0.2, LEFT), (0.65, RIGHT), (1.0, RIGHT))
    till.sheet.add(Row(tuple(Cell(text, *stop) for text, stop in zip(heads, stops, strict=True)), before=0.3))
    till.line()
    for item in till.purchase.items:
        texts = (tax, str(item.quantity), till.money(item.price), till.money(item.amount))
        till.sheet.add(Row(tuple(Cell(text, *stop) for text, stop in zip(texts, stops, strict=True))))
        till.left(_fitted(till, f"{item.code[:3]} {item.text}", till.sheet.columns * 0.85), at=0.08)


def items_numbered(till: Till) -> None:
    """1. code / description / quantity x price / amount, spread over two rows."""
    for index, item in enumerate(till.purchase.items, 1):
        till.sheet.add(Row((Cell(f"{index}. {item.code[:9]}", 0.0, LEFT), Cell(_fitted(till, item.text, till.sheet.columns * 0.5), 0.45, LEFT))))
        quantity = f"{item.quantity} X {money(till.locale, item.price)}"
        till.sheet.add(Row((Cell(quantity, 0.06, LEFT), Cell("-", 0.6, MIDDLE), Cell(till.money(item.amount), 0.88, RIGHT), Cell("SR", 1.0, RIGHT))))


def items_boxed(till: Till) -> None:
    """A table with drawn borders, as on pre-printed cash bills."""
    stops = (0.0, 0.1, 0.58, 0.78, 1.0)
    spots = ((0.05, MIDDLE), (0.12, LEFT), (0.68, MIDDLE), (0.98, RIGHT))
    heads = ("No", till.word("description"), till.word("quantity"), till.word("amount"))
    rows = [heads] + [
        (str(index), _fitted(till, item.text, till.sheet.columns * 0.42), str(item.quantity), till.money(item.amount))
        for index, item in enumerate(till.purchase.items, 1)
    ]
    for texts in rows:
        till.sheet.add(Row(tuple(Cell(text, *spot) for text, spot in zip(texts, spots, strict=True)), frame=stops, scale=1.0))


# --- what it comes to -------------------------------------------------------------------------------------------------


def _sums(till: Till) -> list[tuple[str, str, str]]:
    """(role, label, amount) of every line between the items and the change, in a usual order."""
    bought, rng = till.purchase, till.rng
    sums = []
    if till.likely(0.6) or bought.discount or bought.service or not bought.tax_included:
        sums.append(("subtotal", till.word("subtotal"), till.money(bought.subtotal)))
    if bought.discount:
        sums.append(("discount", till.word("discount"), till.money(-bought.discount)))
    elif till.likely(0.2):
        sums.append(("discount", till.word("discount"), till.money(0)))
    if bought.service:
        sums.append(("service", till.word("service"), till.money(bought.service)))
    if not bought.tax_included or till.likely(0.3):
        sums.append(("tax", till.word("tax"), till.money(bought.tax)))
    if bought.rounding or (till.locale.rounds_to == 5 and till.likely(0.5)):
        sums.append(("rounding", till.word("rounding"), till.money(bought.rounding)))
    total = till.money(bought.total)
    till.sheet.fields["total"] = total
    sums.append(("total", till.word("total"), total))
    if bought.by_card:
        sums.append(("card", till.word("card"), total))
    elif till.likely(0.9):
        sums.append(("cash", till.word("cash"), till.money(bought.paid)))
        sums.append(("change", till.word("change"), till.money(bought.paid - bought.total)))
    if till.likely(0.25):
        count = ("items", till.word("items"), str(sum(item.quantity for item in bought.items)))
        sums.insert(rng.choice((0, len(sums))), count)
    return sums


def _total_look(till: Till, strength: float) -> dict[str, object]:
    if not till.likely(strength):
        return {}
    return till.rng.choice(({"bold": True}, {"scale": 1.2}, {"scale": 1.3, "bold": True}, {"scale": 1.8, "wide": 0.6}, {"scale": 1.25, "wide": 1.1}))


def totals_spread(till: Till, strength: float = 0.5) -> None:
    """Labels at the left or indented, amounts at the right edge, RM printed with some."""
    start, colon = till.rng.choice((0.0, 0.0, 0.2, 0.35)), till.rng.choice(("", ":", " :", ""))
    prefix = till.currency + till.rng.choice(("", " ")) if till.likely(0.3) else ""
    split = till.currency if till.likely(0.2) and not prefix else ""
    for role, label, amount in _sums(till):
        look = _total_look(till, strength) if role == "total" else {}
        shown = amount if role == "items" else prefix + amount
        middle = (Cell(split, 0.78, RIGHT),) if split and role != "items" else ()
        till.sheet.add(Row((Cell(label + colon, start if len(label) < 20 else 0.0, LEFT), *middle, Cell(shown, 1.0, RIGHT)), **look))
        if role == "total" and till.likely(0.3):
            till.line()


def totals_right(till: Till, strength: float = 0.4) -> None:
    """Labels right-aligned to one stop, amounts to the other, as office software prints."""
    stop, colon = till.rng.choice((0.66, 0.7, 0.74)), till.rng.choice(("", " :", " :", " RM" if till.locale.name == "my" else ""))
    for role, label, amount in _sums(till):
        look = _total_look(till, strength) if role == "total" else {}
        till.sheet.add(Row((Cell(label + colon, stop, RIGHT), Cell(amount, 1.0 - till.rng.choice((0.0, 0.0, 0.06)), RIGHT)), **look))


def totals_big(till: Till) -> None:
    """Small sums, then the total in large type between rules, then the payment."""
    for role, label, amount in _sums(till):
        if role == "total":
            till.line()
            till.pair(label if len(label) < 16 else label[:16].strip(), till.money(till.purchase.total, till.likely(0.4)),
                      scale=till.rng.choice((1.3, 1.5, 1.7)), wide=till.rng.choice((1.0, 0.8)), bold=till.likely(0.6))  # fmt: skip
            till.line()
        else:
            till.pair(label, amount)


def totals_inline(till: Till) -> None:
    """Label, colon and amount in one run, right-aligned or centred."""
    at, anchor = till.rng.choice(((1.0, RIGHT), (0.5, MIDDLE), (0.3, LEFT)))
    for role, label, amount in _sums(till):
        currency = till.currency if role != "items" and till.likely(0.6) else ""
        look = {"bold": True} if role == "total" and till.likely(0.4) else {}
        till.sheet.add(Row((Cell(f"{label}: {currency}{amount}", at, anchor),), **look))


# --- after the total --------------------------------------------------------------------------------------------------


def tax_summary(till: Till) -> None:
    """The GST table: another place with plausible amounts."""
    bought = till.purchase
    net = money(till.locale, bought.total - bought.rounding - bought.tax)
    stops = ((0.0, LEFT), (0.66, RIGHT), (1.0, RIGHT))
    currency = f"({till.currency})" if till.likely(0.6) and till.currency else ""
    heads = (till.word("summary"), f"{till.word('amount').split('(')[0].strip()}{currency}", f"{till.rng.choice(('Tax', 'GST', 'TAX'))}{currency}")
    rows = [heads, (till.rng.choice((f"SR @ {bought.tax_rate}%", f"S = {bought.tax_rate}%", f"SR ({bought.tax_rate}%)")), net, till.money(bought.tax))]
    if till.likely(0.4):
        rows.append((till.rng.choice(("ZRL @ 0%", "Z = 0%", "ZR")), "0.00", "0.00"))
    for index, texts in enumerate(rows):
        till.sheet.add(Row(tuple(Cell(text, *stop) for text, stop in zip(texts, stops, strict=True)), before=0.5 if index == 0 else 0))
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


# --- families ---------------------------------------------------------------------------------------------------------

Block = Callable[[Till], None]


@dataclass(frozen=True)
class Family:
    """One house style: what comes in which order."""

    header: Block
    meta: Block
    items: Block
    totals: Block
    columns: tuple[int, int] = (38, 50)
    upper: float = 0.5  # how often everything is in capitals
    summary: float = 0.4
    meta_last: bool = False
    title_first: bool = False
    locales: tuple[str, ...] = ()


DEMO_LAYOUTS: tuple[str, ...] = ()


def header_left(till: Till) -> None:
    header(till, anchor=LEFT)


def header_big(till: Till) -> None:
    header(till, big=True)


def header_dated(till: Till) -> None:
    header(till, date_after_name=True)


def no_meta(till: Till) -> None:
    """The date already stands in the header."""
    till.left(f"{till.word('number')} : {_number(till)}", before=0.5)


FAMILIES = {
    "stationer": Family(header, meta_pairs, items_code_above, totals_right, upper=0.7),
    "minimart": Family(header, meta_line, items_at, totals_spread, upper=0.8, summary=0.7),
    "cafe": Family(header_big, meta_pairs, items_plain, totals_big, upper=0.2),
    "kopitiam": Family(header, meta_columns, items_columns, totals_spread, upper=0.4, summary=0.6),
    "hardware": Family(header_left, meta_columns, items_columns, totals_right, upper=0.6),
    "houseware": Family(header, meta_late, items_code_below, totals_spread, upper=0.9, summary=0.7, meta_last=True),
    "grill": Family(header, meta_pairs, items_tax_first, totals_inline, upper=0.6, summary=0.8),
    "canteen": Family(header_dated, no_meta, items_plain, totals_inline, upper=0.6, summary=0.6),
    "supermarket": Family(header, meta_late, items_code_below, totals_right, upper=0.8, summary=0.7, meta_last=True),
    "paper": Family(header_left, meta_short, items_numbered, totals_right, upper=0.3, summary=0.6),
    "cash_bill": Family(header, meta_columns, items_boxed, totals_right, upper=0.4, summary=0.1),
    "petrol": Family(header, meta_short, items_code_below, totals_big, columns=(32, 42), upper=0.7, summary=0.5),
    "pharmacy": Family(header_big, meta_columns, items_code_above, totals_spread, upper=0.4),
    "bakery": Family(header, meta_short, items_columns, totals_big, upper=0.4),
    "diner": Family(header_big, meta_short, items_plain, totals_spread, upper=0.6, summary=0.0, locales=("us", "uk", "sg")),
    "euro_till": Family(header, meta_late, items_plain, totals_big, upper=0.3, meta_last=True, locales=("de", "fr", "es", "it")),
    "euro_shop": Family(header, meta_pairs, items_columns, totals_spread, upper=0.3, locales=("de", "fr", "es", "it", "uk")),
    "counter": Family(header_left, meta_line, items_code_below, totals_inline, upper=0.5, title_first=True),
}


def compose_receipt(rng: random.Random, layout: str) -> Sheet:
    """A receipt of one family; fields company, date, address and total are exactly what is printed."""
    family = FAMILIES[layout]
    columns = rng.randint(*family.columns)
    upper = rng.random() < family.upper
    locale = content.pick_locale(rng)
    while family.locales and locale.name not in family.locales:
        locale = content.pick_locale(rng)
    sheet = Sheet("receipts", layout, columns, leading=rng.choice((1.15, 1.25, 1.35, 1.45)))
    till = Till(
        rng,
        sheet,
        content.make_shop(rng, locale, upper=upper, width=columns - rng.choice((2, 6, 10))),
        content.make_purchase(rng, locale, upper=upper or rng.random() < 0.5),
        content.make_date(rng, locale, upper),
        content.make_time(rng),
        upper,
        rng.choice(("-", "-", "-", "=", ".", "*", "_", "line", "")),
    )
    if family.title_first:
        title(till)
    family.header(till)
    sheet.fields["date"] = till.date
    if not family.title_first:
        title(till)
    if not family.meta_last:
        family.meta(till)
    till.line()
    family.items(till)
    till.line()
    family.totals(till)
    if rng.random() < family.summary:
        tax_summary(till)
    if family.meta_last:
        family.meta(till)
    footer(till)
    sheet.fields = {key: sheet.fields[key] for key in ("company", "date", "address", "total")}
    return sheet
