"""Documents other than receipts: invoices, tickets, forms, paragraphs and tables."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Unpack

from mllm_tailor.synthetic import content
from mllm_tailor.synthetic.content import digits, money
from mllm_tailor.synthetic.locales import Locale
from mllm_tailor.synthetic.page import LEFT, MIDDLE, RIGHT, Cell, Look, Row, Sheet
from mllm_tailor.synthetic.prose import sentence


def _put(sheet: Sheet, *cells: tuple[str, float, float], **look: Unpack[Look]) -> None:
    """Add a row from (text, at, anchor) triples."""
    sheet.add(Row(tuple(Cell(*cell) for cell in cells), **look))


def _label(rng: random.Random, locale: Locale, role: str) -> str:
    return rng.choice(locale.labels[role]).format(r=rng.choice(locale.tax_rates))


# --- invoices ---------------------------------------------------------------------------------------------------------


def compose_invoice(rng: random.Random, layout: str) -> Sheet:
    """A business invoice: seller, buyer, number, dates, positions, sums."""
    locale = content.pick_locale(rng)
    seller, buyer = (content.make_shop(rng, locale, upper=rng.random() < 0.2, width=32) for _ in range(2))
    sheet = Sheet("invoices", layout, rng.randint(66, 84), leading=rng.choice((1.25, 1.4, 1.55)))
    facts = {
        "invoice_number": rng.choice(("INV-", "", "RE", "F", "20")) + digits(rng, rng.choice((4, 6, 8))),
        "date": content.make_date(rng, locale, upper=False),
        "due_date": content.make_date(rng, locale, upper=False),
    }
    labels = {
        "invoice_number": _label(rng, locale, "number"),
        "date": _label(rng, locale, "date"),
        "due_date": rng.choice(("Due Date", "Payment due", "Due", "Pay by")),
    }
    sheet.fields = {"seller": " ".join(seller.name), "buyer": " ".join(buyer.name), **facts}
    right = layout in ("letter", "ruled")
    title = _label(rng, locale, "document") or "INVOICE"
    for text in seller.name:
        _put(sheet, (text, 0.0 if right else 0.5, LEFT if right else MIDDLE), bold=True, scale=1.2)
    for text in (*seller.address, f"{_label(rng, locale, 'phone')} {seller.phone}"):
        _put(sheet, (text, 0.0 if right else 0.5, LEFT if right else MIDDLE))
    _put(sheet, (title, 1.0 if right else 0.5, RIGHT if right else MIDDLE), bold=True, scale=1.5, before=0.5)
    bill = [rng.choice(("Bill To", "Customer", "Sold to", "To")) + ":", *buyer.name, *buyer.address]
    known = [(labels[key], value) for key, value in facts.items()]
    for index in range(max(len(bill), len(known))):
        cells = [(bill[index], 0.0, LEFT)] if index < len(bill) else []
        if index < len(known):
            cells += [(known[index][0], 0.6, LEFT), (known[index][1], 1.0, RIGHT)]
        _put(sheet, *cells, before=0.7 if index == 0 else 0)
    _positions(rng, sheet, locale, layout)
    for _ in range(rng.randint(0, 2)):
        _put(sheet, (rng.choice(locale.labels["notes"]), 0.0, LEFT), before=0.4)
    return sheet


def _positions(rng: random.Random, sheet: Sheet, locale: Locale, layout: str) -> None:
    """The invoice's table and its sums."""
    bought = content.make_purchase(rng, locale, upper=False, most=10)
    frame = (0.0, 0.08, 0.56, 0.68, 0.84, 1.0) if layout in ("boxed", "ruled") else ()
    stops = ((0.04, MIDDLE), (0.1, LEFT), (0.62, MIDDLE), (0.83, RIGHT), (0.99, RIGHT))
    heads = ("#", *(_label(rng, locale, role) for role in ("description", "quantity", "price", "amount")))
    rows = [heads] + [
        (str(index), item.text[:34], str(item.quantity), money(locale, item.price), money(locale, item.amount))
        for index, item in enumerate(bought.items, 1)
    ]
    for index, texts in enumerate(rows):
        cells = [(text, *stop) for text, stop in zip(texts, stops, strict=True)]
        _put(sheet, *cells, frame=frame, bold=index == 0, before=0.8 if index == 0 else 0)
        if index == 0 and not frame:
            sheet.add(Row(rule="line", scale=0.5))
    total = money(locale, bought.total)
    sums = [("subtotal", bought.subtotal), ("discount", -bought.discount), ("service", bought.service)]
    sums += [("tax", bought.tax), ("rounding", bought.rounding), ("total", bought.total)]
    for role, cents in sums:
        if cents or role in ("subtotal", "total"):
            summed = ((_label(rng, locale, role), 0.8, RIGHT), (money(locale, cents), 0.99, RIGHT))
            _put(sheet, *summed, bold=role == "total", before=0.4 if role == "subtotal" else 0)
    sheet.fields |= {"subtotal": money(locale, bought.subtotal), "total": total}


# --- tickets ----------------------------------------------------------------------------------------------------------


def compose_ticket(rng: random.Random, layout: str) -> Sheet:
    """A travel, cinema, parking or event ticket."""
    locale = content.pick_locale(rng)
    sheet = Sheet("tickets", layout, rng.randint(26, 38), leading=rng.choice((1.3, 1.5)))
    town = partial(lambda: content.make_address(rng, locale)[-1].strip(" .,"))
    facts = {
        "date": content.make_date(rng, locale, upper=rng.random() < 0.5),
        "time": content.make_time(rng),
        "number": digits(rng, rng.choice((6, 8, 10))),
        "price": money(locale, rng.randint(100, 20000)),
    }
    if layout == "travel":
        facts |= {
            "from": town(),
            "to": town(),
            "passenger": content.person(rng),
            "seat": f"{rng.randint(1, 60)}{rng.choice('ABCDEF')}",
        }
    elif layout == "cinema":
        facts |= {
            "title": sentence(rng, "en", 3).rstrip("."),
            "hall": str(rng.randint(1, 12)),
            "seat": f"{rng.choice('ABCDEFGH')}{rng.randint(1, 24)}",
        }
    elif layout == "parking":
        plate = f"{rng.choice('ABJNPVW')}{rng.choice('ABCDE')}{rng.choice('KLMRT')} {rng.randint(1, 9999)}"
        facts |= {"plate": plate, "entry_time": content.make_time(rng), "exit_time": content.make_time(rng)}
    else:
        facts |= {
            "event": f"{content.invented(rng)} {rng.choice(('Festival', 'Concert', 'Fair', 'Match'))}",
            "gate": f"G{rng.randint(1, 30)}",
        }
    order = list(facts)
    rng.shuffle(order)
    sheet.fields = {"issuer": content.brand(rng, locale).upper(), **facts}
    _put(sheet, (sheet.fields["issuer"], 0.5, MIDDLE), scale=1.3, bold=True)
    sheet.add(Row(rule=rng.choice(("-", "=", "line", ""))))
    two_rows, stop = rng.random() < 0.4, rng.choice((0.36, 0.42))
    for key in order:
        label = key.replace("_", " ")
        label = rng.choice((label.capitalize(), label.upper(), label.title()))
        if two_rows:
            _put(sheet, (label, 0.0, LEFT), before=0.2)
            _put(sheet, (facts[key], 0.05, LEFT), scale=1.2, bold=rng.random() < 0.5)
        else:
            _put(sheet, (label, 0.0, LEFT), (": " + facts[key], stop, LEFT))
    sheet.add(Row(rule="-"), Row(art="barcode"))
    return sheet


# --- forms ------------------------------------------------------------------------------------------------------------

QUESTIONS = {
    "name": ("Name", "Full name", "Applicant", "Nama", "Nom", "Name / Vorname"),
    "date_of_birth": ("Date of birth", "Born on", "Tarikh lahir", "Geburtsdatum", "Date de naissance"),
    "address": ("Address", "Alamat", "Home address", "Adresse", "Indirizzo"),
    "phone": ("Phone", "Telephone", "No. Tel", "Telefon", "Teléfono"),
    "email": ("Email", "E-mail", "Mail address"),
    "identity_number": ("ID No.", "Passport No.", "IC No.", "Ausweis-Nr.", "N° d'identité"),
    "occupation": ("Occupation", "Position", "Pekerjaan", "Beruf", "Profession"),
    "employer": ("Employer", "Company", "Majikan", "Arbeitgeber", "Azienda"),
    "amount": ("Amount", "Sum", "Jumlah", "Betrag", "Montant"),
    "reference": ("Reference", "Ref. No.", "Rujukan", "Aktenzeichen", "Référence"),
    "signed_on": ("Date", "Signed on", "Tarikh", "Datum", "Data"),
}
JOBS = (
    "Teacher",
    "Nurse",
    "Driver",
    "Clerk",
    "Engineer",
    "Baker",
    "Cook",
    "Student",
    "Farmer",
    "Kerani",
    "Bäcker",
    "Guru",
)


def _answers(rng: random.Random, locale: Locale) -> dict[str, str]:
    name, firm = f"{content.person(rng)} {content.invented(rng)}", content.brand(rng, locale)
    return {
        "name": name,
        "date_of_birth": content.make_date(rng, locale, upper=False),
        "address": " ".join(content.make_address(rng, locale))[:52].strip(),
        "phone": content.make_phone(rng, locale),
        "email": f"{name.split()[0].lower()}{rng.randint(1, 99)}@{content.invented(rng).lower()}.com",
        "identity_number": rng.choice(
            (f"{digits(rng, 6)}-{digits(rng, 2)}-{digits(rng, 4)}", f"{rng.choice('ACGK')}{digits(rng, 8)}")
        ),
        "occupation": rng.choice(JOBS),
        "employer": content.company(rng, locale, firm),
        "amount": money(locale, rng.randint(1000, 900000)),
        "reference": f"{rng.choice('ABCX')}{digits(rng, 3)}/{digits(rng, 4)}",
        "signed_on": content.make_date(rng, locale, upper=False),
    }


def compose_form(rng: random.Random, layout: str) -> Sheet:
    """A filled-in form: boxed, on dotted lines, or label above answer."""
    locale = content.pick_locale(rng)
    sheet = Sheet("forms", layout, rng.randint(50, 72), leading=rng.choice((1.4, 1.6, 1.8)))
    answers = _answers(rng, locale)
    keys = rng.sample(list(answers), rng.randint(4, len(answers)))
    heading = rng.choice(
        ("APPLICATION FORM", "Registration", "Claim Form", "BORANG PERMOHONAN", "Antrag", "Member details")
    )
    _put(sheet, (heading, *rng.choice(((0.0, LEFT), (0.5, MIDDLE)))), scale=1.4, bold=True)
    for number, key in enumerate(keys, 1):
        label = rng.choice(QUESTIONS[key])
        label = f"{number}. {label}" if layout == "numbered" else label
        if layout == "boxed":
            _put(sheet, (label, 0.02, LEFT), (answers[key], 0.36, LEFT), frame=(0.0, 0.34, 1.0))
        elif layout == "above":
            _put(sheet, (label, 0.0, LEFT), scale=0.8, before=0.3)
            _put(sheet, (answers[key], 0.02, LEFT))
            sheet.add(Row(rule=rng.choice((".", "line")), scale=0.4))
        else:
            _put(sheet, (f"{label}:", 0.0, LEFT), (answers[key], 0.36, LEFT), before=0.2)
    for _ in range(rng.randint(0, 2)):
        for line in content.wrap(sentence(rng, locale.name, 12), sheet.columns - 6):
            _put(sheet, (line, 0.0, LEFT))
    sheet.fields = {key: answers[key] for key in keys}
    return sheet


# --- paragraphs and tables --------------------------------------------------------------------------------------------


def compose_paragraph(rng: random.Random, layout: str) -> Sheet:
    """Running text, a list, a letter, or random characters that no language model can guess."""
    locale = content.pick_locale(rng, ("my", "uk", "de", "fr", "es", "it"))
    sheet = Sheet("paragraphs", layout, rng.randint(30, 76), leading=rng.choice((1.2, 1.4, 1.6)))
    heading = sentence(rng, locale.name, 4).rstrip(".")
    sheet.fields = {"title": heading}
    _put(sheet, (heading, 0.0, LEFT), scale=rng.choice((1.0, 1.3, 1.6)), bold=rng.random() < 0.7)
    if layout == "letter":
        sheet.fields["date"] = content.make_date(rng, locale, upper=False)
        _put(sheet, (sheet.fields["date"], 1.0, RIGHT))
    for number in range(1, rng.randint(2, 6)):
        if layout == "random":
            text = " ".join("".join(rng.choices(RANDOM, k=rng.randint(1, 9))) for _ in range(rng.randint(6, 30)))
        else:
            text = " ".join(sentence(rng, locale.name, rng.randint(5, 14)) for _ in range(rng.randint(1, 4)))
        text = f"{number}. {text}" if layout == "list" else text
        for index, line in enumerate(content.wrap(text, sheet.columns)):
            _put(sheet, (line, 0.03 if layout == "list" and index else 0.0, LEFT), before=0.6 if index == 0 else 0)
    return sheet


RANDOM = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;-/()&%'\"#@+*=!?$€£éèäöüßñçàì"


def compose_table(rng: random.Random, layout: str) -> Sheet:
    """A table of names and figures; some of its cells are fields named row and column."""
    locale = content.pick_locale(rng)
    columns, rows = rng.randint(2, 5), rng.randint(3, 14)
    sheet = Sheet("tables", layout, rng.randint(44, 70), leading=rng.choice((1.3, 1.5, 1.7)))
    heads = [rng.choice(HEADS) for _ in range(columns)]
    stops = [0.0] + [0.34 + 0.66 * (index + 1) / columns for index in range(columns)]
    frame = tuple([0.0] + [0.34 + 0.66 * index / columns for index in range(columns + 1)]) if layout == "boxed" else ()
    _put(sheet, (sentence(rng, locale.name, 4).rstrip("."), 0.5, MIDDLE), bold=True, scale=1.2)
    table = [["", *heads]]
    kind = rng.choice(("money", "count", "percent", "date"))
    for _ in range(rows):
        table.append(
            [
                rng.choice((content.invented(rng), rng.choice(locale.goods)))[:16],
                *(_figure(rng, locale, kind) for _ in heads),
            ]
        )
    for index, texts in enumerate(table):
        cells = [(texts[0], 0.01, LEFT)] if texts[0] else []
        cells += [(text, stop - 0.01, RIGHT) for text, stop in zip(texts[1:], stops[1:], strict=True)]
        _put(sheet, *cells, frame=frame, bold=index == 0, before=0.5 if index == 0 else 0)
        if layout == "ruled" or (layout == "headed" and index == 0):
            sheet.add(Row(rule="line", scale=0.4))
    for row in rng.sample(table[1:], min(4, rows)):
        column = rng.randrange(columns)
        sheet.fields[f"{row[0]} {heads[column]}"] = row[1 + column]
    return sheet


HEADS = (
    "2019",
    "2020",
    "2021",
    "2022",
    "Total",
    "Qty",
    "Price",
    "Jan",
    "Feb",
    "Mar",
    "Q1",
    "Q2",
    "Min",
    "Max",
    "Mean",
    "A",
    "B",
    "C",
)


def _figure(rng: random.Random, locale: Locale, kind: str) -> str:
    if kind == "money":
        return money(locale, rng.randint(10, 500000))
    if kind == "count":
        return str(rng.randint(0, 9999))
    return f"{rng.randint(0, 1000) / 10}%" if kind == "percent" else content.make_date(rng, locale, upper=False)


def _kind(compose: Callable[..., Sheet], names: str) -> dict[str, Callable[[random.Random], Sheet]]:
    return {name: partial(compose, layout=name) for name in names.split()}


LAYOUTS = {
    "invoices": _kind(compose_invoice, "letter centred boxed ruled"),
    "tickets": _kind(compose_ticket, "travel cinema parking event"),
    "forms": _kind(compose_form, "boxed above numbered plain"),
    "paragraphs": _kind(compose_paragraph, "prose letter list random"),
    "tables": _kind(compose_table, "plain headed ruled boxed"),
}
