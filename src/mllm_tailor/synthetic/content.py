"""What a document says, before anybody decides where it stands: shops, addresses, dates, money and purchases."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mllm_tailor.synthetic import words as w
from mllm_tailor.synthetic.locales import LOCALES, NAMES, WEIGHTS, Locale


@dataclass(frozen=True)
class Shop:
    """Who sells: name lines as printed, address lines as printed, and the numbers that stand around them."""

    locale: Locale
    brand: str
    name: tuple[str, ...]
    address: tuple[str, ...]
    phone: str
    registration: str
    tax_id: str


@dataclass(frozen=True)
class Item:
    """One line of a purchase; money in cents."""

    code: str
    text: str
    quantity: int
    price: int

    @property
    def amount(self) -> int:
        return self.quantity * self.price


@dataclass(frozen=True)
class Purchase:
    """What was bought and how it adds up; money in cents."""

    items: tuple[Item, ...]
    subtotal: int
    discount: int
    service: int
    tax: int
    tax_rate: int
    tax_included: bool
    rounding: int
    total: int
    paid: int
    by_card: bool


def pick_locale(rng: random.Random, among: tuple[str, ...] = ()) -> Locale:
    """A country by its share of the receipts, or one of a few alike."""
    return LOCALES[rng.choice(among) if among else rng.choices(NAMES, WEIGHTS)[0]]


def digits(rng: random.Random, count: int) -> str:
    return str(rng.randrange(10**count)).zfill(count)


def invented(rng: random.Random) -> str:
    """A pronounceable word that is in no dictionary."""
    syllables = rng.choice((2, 2, 2, 3, 3, 4))
    word = "".join(rng.choice(w.ONSETS) + rng.choice(w.VOWELS) for _ in range(syllables)) + rng.choice(w.CODAS)
    return word.capitalize()


def person(rng: random.Random) -> str:
    return rng.choice(w.PEOPLE) + (" " + rng.choice(w.SURNAMES) if rng.random() < 0.4 else "")


def brand(rng: random.Random, locale: Locale) -> str:
    """The distinctive part of a shop's name."""
    form = rng.random()
    if locale.name in ("my", "sg") and form < 0.55:
        if form < 0.2:
            return " ".join(rng.choice(w.CHINESE) for _ in range(rng.choice((2, 2, 3))))
        if form < 0.4:
            return " ".join(rng.sample(w.MALAY, rng.choice((1, 2, 2))))
        return rng.choice(
            (f"{rng.randint(1, 99)} {rng.choice(w.CHINESE)}", f"{rng.choice(w.PEOPLE)}'S", _initials(rng))
        )
    if form < 0.7:
        return invented(rng)
    if form < 0.8:
        return f"{invented(rng)} {rng.choice(('&', 'and', '@', '+', '-'))} {invented(rng)}"
    return rng.choice(
        (rng.choice(w.SURNAMES), f"{invented(rng)} {invented(rng)}", _initials(rng), f"The {invented(rng)}")
    )


def _initials(rng: random.Random) -> str:
    letters = rng.choices("ABCDEGHJKLMNPRSTWY", k=rng.choice((2, 3, 3)))
    return rng.choice(("", ".", ". ", " ")).join(letters)


def company(rng: random.Random, locale: Locale, name: str) -> str:
    """A full company name around a brand, as it would be registered."""
    trade, suffix = rng.choice(locale.trades), rng.choice(locale.suffixes)
    if locale.name in ("de", "fr", "es", "it"):
        parts = (trade, name, suffix) if rng.random() < 0.7 else (name, suffix)
    elif trade in ("RESTORAN", "KEDAI MAKANAN", "PERNIAGAAN", "SYARIKAT", "PASARAYA"):
        parts = (trade, name, suffix)
    else:
        parts = (name, trade, suffix) if rng.random() < 0.8 else (name, suffix)
    return " ".join(part for part in parts if part)


def unit(rng: random.Random) -> str:
    """A Malaysian house or lot number."""
    number, letter, floor = rng.randint(1, 220), rng.choice("ABGLF"), rng.choice(("1st", "2nd", "3rd", "Ground"))
    usual = (f"No. {number}", f"No.{number}", f"No {number}", f"{number}", f"Lot {rng.randint(1, 9000)}", f"{number}G")
    rare = (
        f"No.{number}-{rng.choice('GAB12')}",
        f"Lot PT {digits(rng, 4)}",
        f"No. {number} & {number + 2}",
        f"{letter}{rng.randint(1, 3)}-{number}",
        f"Lot {letter}{number}, {floor} Floor",
        f"Unit {letter}-{number}-{rng.randint(1, 30)}",
        f"No. {number}, {floor} Floor",
        f"No.{number}, {number + 2} & {number + 4}",
        f"Block {letter}, No {number}",
        f"Batu {rng.randint(1, 15)}",
    )
    return rng.choice(usual if rng.random() < 0.5 else rare)


def _street_my(rng: random.Random) -> str:
    kind = rng.choice(("Jalan",) * 6 + ("Jln", "Jln", "Lorong", "Persiaran", "Lebuh"))
    name = rng.choice(w.STREETS_MY) if rng.random() < 0.8 else f"{rng.choice(w.STREETS_MY)} {rng.choice(w.MALAY)}"
    tail = rng.random()
    if tail < 0.3:
        return f"{kind} {name} {rng.randint(1, 40)}/{rng.randint(1, 30)}{rng.choice(('', '', '', 'A', 'B'))}"
    if tail < 0.6:
        return f"{kind} {name} {rng.randint(1, 40)}"
    return (
        f"{kind} {rng.choice(('SS', 'PJS', 'U', 'PJU '))}{rng.randint(1, 25)}/{rng.randint(1, 40)}"
        if tail < 0.68
        else f"{kind} {name}"
    )


def _address_my(rng: random.Random) -> tuple[str, ...]:
    town, prefix, state = rng.choice(w.TOWNS_MY)
    postcode = prefix + digits(rng, 5 - len(prefix)) if rng.random() < 0.5 else (prefix + "00000")[:5]
    comma = rng.choice((",", ",", ",", "", " ,"))
    pieces = [unit(rng), _street_my(rng)]
    if rng.random() < 0.75:
        pieces.append(
            f"{rng.choice(w.AREAS_MY)} {rng.choice(w.MALAY)} {rng.choice(('', '', rng.choice(w.STREETS_MY)))}".strip()
        )
    last = [f"{postcode} {town}"] + ([state] if state and rng.random() < 0.85 else [])
    if rng.random() < 0.12:
        last.append("Malaysia")
    lines = _share(rng, pieces, comma)
    if rng.random() < 0.7 or len(last) == 1:
        lines.append(rng.choice((", ", ", ", " ", ",")).join(last))
    else:
        lines += [last[0] + comma, ", ".join(last[1:])]
    if rng.random() < 0.35:
        lines[-1] += "."
    return tuple(line.strip() for line in lines)


def _share(rng: random.Random, pieces: list[str], comma: str) -> list[str]:
    """Spread the pieces of an address over lines, a few to each."""
    lines, line = [], ""
    for index, piece in enumerate(pieces):
        line = f"{line} {piece}".strip() if line else piece
        line += comma
        full = len(line) > 30 or rng.random() < 0.45
        if full and not (index == 0 and rng.random() < 0.9):
            lines.append(line)
            line = ""
    return [*lines, line] if line else lines


def _address_west(rng: random.Random, locale: Locale) -> tuple[str, ...]:
    number = rng.randint(1, 240)
    pair = {"uk": w.TOWNS_UK, "us": w.TOWNS_US, "de": w.TOWNS_DE, "fr": w.TOWNS_FR, "es": w.TOWNS_ES, "it": w.TOWNS_IT}
    if locale.name == "sg":
        street = f"{number} {rng.choice(w.STREETS_EN)} {rng.choice(('Road', 'Street', 'Ave 3', 'Drive', 'Way'))}"
        return f"{street} #{digits(rng, 2)}-{digits(rng, 2)}", f"Singapore {digits(rng, 6)}"
    town, code = rng.choice(pair[locale.name]).split(",")
    if locale.name in ("uk", "us"):
        kind = rng.choice(("Street", "Road", "Ave", "St", "Lane", "Blvd", "Drive"))
        street = f"{number} {rng.choice(w.STREETS_EN)} {kind}"
        return street, f"{town}, {code}{digits(rng, 2)}" if locale.name == "us" else f"{town} {code}"
    code += digits(rng, 5 - len(code))
    streets = {"de": w.STREETS_DE, "fr": w.STREETS_FR, "es": w.STREETS_ES, "it": w.STREETS_IT}[locale.name]
    street = rng.choice(streets)
    line = {
        "de": f"{street} {number}",
        "fr": f"{number}, {street}",
        "es": f"{street}, {number}",
        "it": f"{street} {number}",
    }
    return line[locale.name], f"{code} {town}"


def make_address(rng: random.Random, locale: Locale) -> tuple[str, ...]:
    """An address as two to four printed lines."""
    return _address_my(rng) if locale.name == "my" else _address_west(rng, locale)


def make_phone(rng: random.Random, locale: Locale) -> str:
    if locale.name == "my":
        area, rest = rng.choice(("03", "07", "04", "05", "06", "012", "016", "088", "+603", "1-300")), digits(rng, 7)
        return rng.choice((f"{area}-{rest}", f"{area}-{rest[:3]} {rest[3:]}", f"{area} {rest}", f"{area}{rest}"))
    form = {
        "us": "({}) {}-{}",
        "uk": "0{} {} {}",
        "sg": "6{}{} {}",
        "de": "0{}/{}{}",
        "fr": "0{} {} {}",
        "es": "9{} {} {}",
        "it": "0{}-{}{}",
    }
    middle = digits(rng, 2) if locale.name == "sg" else digits(rng, 3)
    first = digits(rng, 1) if locale.name in ("sg",) else digits(rng, 3 if locale.name in ("us", "uk") else 2)
    return form[locale.name].format(first, middle, digits(rng, 4))


def make_shop(rng: random.Random, locale: Locale, *, upper: bool, width: int) -> Shop:
    """A shop whose lines are at most about `width` characters long, in capitals or not."""
    title = brand(rng, locale)
    lines = wrap(company(rng, locale, title), max(14, width - 6))
    address = [part for line in make_address(rng, locale) for part in wrap(line, width)]
    case = str.upper if upper else str
    name_case = str.upper if upper or rng.random() < 0.6 else str
    registration = rng.choice(
        (
            f"{digits(rng, 6)}-{rng.choice('ADHKMPTUVWX')}",
            f"{digits(rng, 7)}-{rng.choice('ADHKMPTUVWX')}",
            f"JM{digits(rng, 7)}-V",
            f"{digits(rng, 9)}-{rng.choice('ADHKMPTUVWX')}",
        )
    )
    tax_id = {
        "my": "00" + digits(rng, 10),
        "de": "DE" + digits(rng, 9),
        "fr": "FR" + digits(rng, 11),
        "es": "B" + digits(rng, 8),
        "it": digits(rng, 11),
    }
    return Shop(
        locale, name_case(title), tuple(name_case(line) for line in lines), tuple(case(line) for line in address),
        make_phone(rng, locale), registration, tax_id.get(locale.name, digits(rng, 9)),
    )  # fmt: skip


def wrap(text: str, width: int) -> list[str]:
    """Break at blanks so that lines are at most `width` long where the words allow it."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def make_item(rng: random.Random, locale: Locale, *, upper: bool) -> Item:
    text = rng.choice(locale.goods)
    if rng.random() < 0.3:
        text = f"{invented(rng)} {text}"
    if rng.random() < 0.4:
        text = f"{text} {rng.choice(w.SIZES)}"
    code = rng.choice(
        (
            digits(rng, 13),
            digits(rng, 13),
            digits(rng, 6),
            digits(rng, 4),
            f"{rng.choice('ABKPTW')}{digits(rng, 3)}",
            f"{digits(rng, 4)}-{digits(rng, 4)}",
        )
    )
    quantity = 1 if rng.random() < 0.65 else rng.randint(2, 12)
    price = round(rng.lognormvariate(6.6, 0.9))
    if rng.random() < 0.7:
        price = max(10, round(price / 10) * 10 - rng.choice((0, 0, 1, 5)))
    return Item(code, text.upper() if upper else text, quantity, max(5, price))


def make_purchase(rng: random.Random, locale: Locale, *, upper: bool, most: int = 9) -> Purchase:
    """One to `most` items and an honest sum: items - discount + service + tax + rounding = total."""
    items = tuple(make_item(rng, locale, upper=upper) for _ in range(min(most, 1 + int(rng.expovariate(0.18)))))
    subtotal = sum(item.amount for item in items)
    discount = round(subtotal * rng.choice((5, 10, 20)) / 100) if rng.random() < 0.2 else 0
    service = round((subtotal - discount) * 0.1) if rng.random() < 0.12 else 0
    rate, included = rng.choice(locale.tax_rates), rng.random() < 0.6
    base = subtotal - discount + service
    tax = round(base * rate / (100 + rate)) if included else round(base * rate / 100)
    exact = base if included else base + tax
    total = round(exact / locale.rounds_to) * locale.rounds_to
    by_card = rng.random() < 0.25
    steps = (100, 500, 1000, 5000, 10000)
    step = rng.choice([step for step in steps if step < 20 * total] or [100])
    paid = total if by_card or rng.random() < 0.2 else -(-total // step) * step
    return Purchase(items, subtotal, discount, service, tax, rate, included, total - exact, total, paid, by_card)


def money(locale: Locale, cents: int, *, thousands: bool = True) -> str:
    """Cents as printed: 1,234.50 or 1.234,50."""
    text = f"{abs(cents) / 100:,.2f}" if thousands else f"{abs(cents) / 100:.2f}"
    if locale.decimal == ",":
        text = text.replace(",", " ").replace(".", ",").replace(" ", ".")
    return "-" + text if cents < 0 else text


def make_date(rng: random.Random, locale: Locale, pattern: str | None = None, *, upper: bool) -> str:
    """A day of 2010 to 2026 in one of the country's ways, or in the given one."""
    year, month, day = rng.randint(2010, 2026), rng.randint(1, 12), rng.randint(1, 28 if rng.random() < 0.9 else 30)
    day = min(day, 28) if month == 2 else day
    name = locale.months[month - 1]
    text = (pattern or rng.choice(locale.dates)).format(d=day, m=month, Y=year, y=year % 100, mon=name)
    return text.upper() if upper or rng.random() < 0.4 else text


def make_time(rng: random.Random) -> str:
    hour, minute, second = rng.randint(7, 22), rng.randint(0, 59), rng.randint(0, 59)
    half = f"{(hour - 1) % 12 + 1}:{minute:02}"
    return rng.choice(
        (
            f"{hour:02}:{minute:02}", f"{hour:02}:{minute:02}:{second:02}", f"{half} {'AM' if hour < 12 else 'PM'}",
            f"{half}:{second:02} {'AM' if hour < 12 else 'PM'}", f"{half}{'am' if hour < 12 else 'pm'}",
        )
    )  # fmt: skip
