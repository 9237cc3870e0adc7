"""The middle of a receipt: nine ways to print the items and four ways to print the sums."""

from __future__ import annotations

from mllm_tailor.synthetic.content import money
from mllm_tailor.synthetic.page import LEFT, MIDDLE, RIGHT, Cell, Look, Row
from mllm_tailor.synthetic.till import Till

# --- what was bought --------------------------------------------------------------------------------------------------


def _code(till: Till) -> str:
    return (
        till.rng.choice(("SR", "S", "ZRL", "Z", "T", "*S")) if till.purchase.tax_rate else till.rng.choice(("Z", "ZRL"))
    )


def _fitted(text: str, columns: float) -> str:
    return text[: max(6, int(columns))].strip()


def items_columns(till: Till) -> None:
    """Headings and one row an item: quantity, description, price, amount."""
    columns, with_price = till.sheet.columns, till.likely(0.5)
    quantity_first = till.likely(0.6)
    stops = (0.0, 0.12) if quantity_first else (0.56, 0.0)
    price = ((0.8, RIGHT),) if with_price else ()
    heads = [
        Cell(till.word("quantity"), stops[0], LEFT if quantity_first else MIDDLE),
        Cell(till.word("description"), stops[1], LEFT),
    ]
    heads += [Cell(till.word("price"), *stop) for stop in price] + [Cell(till.word("amount"), 1.0, RIGHT)]
    till.sheet.add(Row(tuple(sorted(heads, key=lambda cell: cell.at)), before=0.3))
    till.line()
    room = columns * (0.62 if not with_price else 0.48) - (0 if quantity_first else 6)
    for item in till.purchase.items:
        cells = [
            Cell(str(item.quantity), stops[0], LEFT if quantity_first else MIDDLE),
            Cell(_fitted(item.text, room), stops[1], LEFT),
        ]
        cells += [Cell(till.money(item.price), *stop) for stop in price] + [Cell(till.money(item.amount), 1.0, RIGHT)]
        till.sheet.add(Row(tuple(sorted(cells, key=lambda cell: cell.at))))


def items_code_below(till: Till) -> None:
    """Description on a row, then below it code, quantity x price and amount with a tax code."""
    tax, times = _code(till), till.rng.choice((" X ", " x ", "x", " @ "))
    suffix = f" {tax}" if till.likely(0.6) else ""
    with_code = till.likely(0.7)
    for item in till.purchase.items:
        till.left(_fitted(item.text, till.sheet.columns * 0.85))
        first = [Cell(item.code, 0.02, LEFT)] if with_code else []
        middle = Cell(f"{item.quantity}{times}{money(till.locale, item.price)}", 0.7, RIGHT)
        till.sheet.add(Row((*first, middle, Cell(till.money(item.amount) + suffix, 1.0, RIGHT))))


def items_code_above(till: Till) -> None:
    """Barcode and description in one row, the sums in the next; headings above."""
    heads = (
        Cell(till.word("description"), 0.0, LEFT),
        Cell(till.word("price"), 0.6, RIGHT),
        Cell(till.word("amount"), 1.0, RIGHT),
    )
    till.sheet.add(Row(heads, before=0.3))
    till.line()
    pieces, discount = till.rng.choice((" PC", " UNIT", "", " PCS")), till.likely(0.3)
    for item in till.purchase.items:
        till.left(_fitted(f"{item.code} {item.text}", till.sheet.columns * 0.95))
        cells = [Cell(f"{item.quantity}{pieces}", 0.12, LEFT), Cell(f"{money(till.locale, item.price)}", 0.6, RIGHT)]
        cells += [Cell("0.00", 0.78, RIGHT)] if discount else []
        till.sheet.add(Row((*cells, Cell(f"{till.money(item.amount)}", 1.0, RIGHT))))


def items_at(till: Till) -> None:
    """Code, description and amount; several of one kind are explained in a second row."""
    currency, tail = till.currency, till.rng.choice(("", " S", " *", " T"))
    for item in till.purchase.items:
        text = _fitted(f"{item.code[:4]} {item.text}", till.sheet.columns * 0.68)
        till.pair(text, till.money(item.amount, currency=True) + tail)
        several = {"count": str(item.quantity), "price": money(till.locale, item.price)} if item.quantity > 1 else {}
        till.sheet.items.append({"name": text, "count": "", "price": "", **several, "amount": till.money(item.amount)})
        if item.quantity > 1:
            till.left(f"@{item.quantity} x {currency} {money(till.locale, item.price)}", at=0.05)


def items_plain(till: Till) -> None:
    """Cafe style: quantity, name, amount, no headings."""
    for item in till.purchase.items:
        name = _fitted(item.text, till.sheet.columns * 0.66)
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
        till.left(_fitted(f"{item.code[:3]} {item.text}", till.sheet.columns * 0.85), at=0.08)


def items_numbered(till: Till) -> None:
    """1. code / description / quantity x price / amount, spread over two rows."""
    for index, item in enumerate(till.purchase.items, 1):
        till.sheet.add(
            Row(
                (
                    Cell(f"{index}. {item.code[:9]}", 0.0, LEFT),
                    Cell(_fitted(item.text, till.sheet.columns * 0.5), 0.45, LEFT),
                )
            )
        )
        quantity = f"{item.quantity} X {money(till.locale, item.price)}"
        till.sheet.add(
            Row(
                (
                    Cell(quantity, 0.06, LEFT),
                    Cell("-", 0.6, MIDDLE),
                    Cell(till.money(item.amount), 0.88, RIGHT),
                    Cell("SR", 1.0, RIGHT),
                )
            )
        )


def items_inline(till: Till) -> None:
    """Everything about an item in one run of text, the amount at the edge; the name alone above it."""
    for item in till.purchase.items:
        till.left(_fitted(item.text, till.sheet.columns * 0.9), bold=till.likely(0.05))
        till.pair(
            f"    {item.quantity} x {money(till.locale, item.price)} ",
            till.money(item.amount) + till.rng.choice(("", "", " SR")),
        )


def items_boxed(till: Till) -> None:
    """A table with drawn borders, as on pre-printed cash bills."""
    stops = (0.0, 0.1, 0.58, 0.78, 1.0)
    spots = ((0.05, MIDDLE), (0.12, LEFT), (0.68, MIDDLE), (0.98, RIGHT))
    heads = ("No", till.word("description"), till.word("quantity"), till.word("amount"))
    rows = [heads] + [
        (str(index), _fitted(item.text, till.sheet.columns * 0.42), str(item.quantity), till.money(item.amount))
        for index, item in enumerate(till.purchase.items, 1)
    ]
    for texts in rows:
        till.sheet.add(
            Row(tuple(Cell(text, *spot) for text, spot in zip(texts, spots, strict=True)), frame=stops, scale=1.0)
        )


# --- what it comes to -------------------------------------------------------------------------------------------------


def _sums(till: Till) -> list[tuple[str, str, str]]:
    """(role, label, amount) of every line between the items and the change, in a usual order."""
    bought, total = till.purchase, till.money(till.purchase.total)
    sums: list[tuple[str, str, str]] = []

    def put(role: str, amount: str, *, shown: bool = True) -> None:
        if shown:
            sums.append((role, till.word(role), till.record_fact(role, amount)))

    always = bool(bought.discount or bought.service or not bought.tax_included)
    put("subtotal", till.money(bought.subtotal), shown=always or till.likely(0.6))
    put("discount", till.money(-bought.discount), shown=bool(bought.discount) or till.likely(0.15))
    put("service", till.money(bought.service), shown=bool(bought.service))
    put("tax", till.money(bought.tax), shown=not bought.tax_included or till.likely(0.3))
    coins = till.locale.rounds_to == 5
    put("rounding", till.money(bought.rounding), shown=bool(bought.rounding) or (coins and till.likely(0.5)))
    put("total", total)
    if bought.by_card:
        put("card", total)
    elif till.likely(0.9):
        put("cash", till.money(bought.paid))
        put("change", till.money(bought.paid - bought.total))
    if till.likely(0.25):
        put("items", str(sum(item.quantity for item in bought.items)))
        if till.likely(0.5):
            sums.insert(0, sums.pop())
    till.sheet.fields["total"] = till.sheet.facts.pop("total")
    return sums


def _total_look(till: Till, strength: float) -> Look:
    if not till.likely(strength):
        return {}
    looks: tuple[Look, ...] = (
        {"bold": True},
        {"scale": 1.2},
        {"scale": 1.3, "bold": True},
        {"scale": 1.8, "wide": 0.6},
        {"scale": 1.25, "wide": 1.1},
    )
    return till.rng.choice(looks)


def totals_spread(till: Till, strength: float = 0.5) -> None:
    """Labels at the left or indented, amounts at the right edge, RM printed with some."""
    start, colon = till.rng.choice((0.0, 0.0, 0.2, 0.35)), till.rng.choice(("", ":", " :", ""))
    prefix = till.currency + till.rng.choice(("", " ")) if till.likely(0.3) else ""
    split = till.currency if till.likely(0.2) and not prefix else ""
    for role, label, amount in _sums(till):
        look: Look = _total_look(till, strength) if role == "total" else {}
        shown = amount if role == "items" else prefix + amount
        middle = (Cell(split, 0.78, RIGHT),) if split and role != "items" else ()
        till.sheet.add(
            Row(
                (Cell(label + colon, start if len(label) < 20 else 0.0, LEFT), *middle, Cell(shown, 1.0, RIGHT)), **look
            )
        )
        if role == "total" and till.likely(0.3):
            till.line()


def totals_right(till: Till, strength: float = 0.4) -> None:
    """Labels right-aligned to one stop, amounts to the other, as office software prints."""
    stop, edge = till.rng.choice((0.66, 0.7, 0.74)), till.rng.choice((1.0, 1.0, 0.94))
    colon = till.rng.choice(("", " :", " :", " RM" if till.locale.name == "my" else ""))
    for role, label, amount in _sums(till):
        look: Look = _total_look(till, strength) if role == "total" else {}
        till.sheet.add(Row((Cell(label + colon, stop, RIGHT), Cell(amount, edge, RIGHT)), **look))


def totals_big(till: Till) -> None:
    """Small sums, then the total in large type between rules, then the payment."""
    for role, label, amount in _sums(till):
        if role == "total":
            till.line()
            wide, scale = till.rng.choice((1.0, 0.8)), till.rng.choice((1.3, 1.5, 1.7))
            amount = till.money(till.purchase.total, currency=till.likely(0.4))
            till.pair(
                label if len(label) <= 16 else label.split("(")[0].split(" Incl")[0].strip()[:20],
                amount,
                scale=scale,
                wide=wide,
                bold=till.likely(0.6),
            )
            till.line()
        else:
            till.pair(label, amount)


def totals_inline(till: Till) -> None:
    """Label, colon and amount in one run, right-aligned or centred."""
    at, anchor = till.rng.choice(((1.0, RIGHT), (0.5, MIDDLE), (0.3, LEFT)))
    for role, label, amount in _sums(till):
        currency = till.currency if role != "items" and till.likely(0.6) else ""
        look: Look = {"bold": True} if role == "total" and till.likely(0.4) else {}
        till.sheet.add(Row((Cell(f"{label}: {currency}{amount}", at, anchor),), **look))
