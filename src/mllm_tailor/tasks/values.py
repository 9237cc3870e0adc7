"""Read amounts and dates as documents print them. Tasks normalise labels with it, scoring compares with it."""

from __future__ import annotations

import datetime
import re
import unicodedata
from decimal import Decimal
from typing import Literal

DateOrder = Literal["dmy", "mdy", "ymd"]

# ISO 4217 codes in use, and the abbreviations that documents print instead.
_CODES = """
    aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd btn bwp byn bzd cad cdf chf
    clp cny cop crc cup cve czk djf dkk dop dzd egp ern etb eur fjd fkp gbp gel ghs gip gmd gnf gtq gyd hkd hnl htg
    huf idr ils inr iqd irr isk jmd jod jpy kes kgs khr kmf kpw krw kwd kyd kzt lak lbp lkr lrd lsl lyd mad mdl mga
    mkd mmk mnt mop mru mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd
    rub rwf sar sbd scr sdg sek sgd shp sle sos srd ssp stn svc syp szl thb tjs tmt tnd top try ttd twd tzs uah ugx
    usd uyu uzs ves vnd vuv wst xaf xcd xof xpf yer zar zmw zwl
    rm rs kr zł zl fr ft kč kc lei lv tl руб р лв rp tk ksh dh dhs bs
"""
_NAME = "|".join(sorted(map(re.escape, _CODES.split()), key=len, reverse=True))
# A currency name, or a sign with up to three letters before it: R$, S$, US$, NT$, €.
_CURRENCY = rf"(?:(?:{_NAME})\.?|[a-z]{{0,3}}¤)"
_NUMBER = r"(?:\d[\d.,' ]*|[.,]\d+)"
_AMOUNT = re.compile(
    rf"(?P<minus>[-+])? ?{_CURRENCY}? ?(?P<inner>[-+])? ?(?P<number>{_NUMBER}) ?{_CURRENCY}? ?(?P<trailing>-)?"
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def read_amount(text: str, *, decimal_point: bool = False) -> Decimal | None:
    """The number of a printed amount with at most one currency sign or name, or None.

    The last separator is the decimal one, unless exactly three digits follow it, at least one digit other than a lone
    zero stands before it, and no other separator differs from it. Parentheses or a minus sign make it negative.
    With `decimal_point`, a lone point is always the decimal one.

    >>> read_amount("$1.234,50"), read_amount("1,234"), read_amount("0.500"), read_amount("(9.00)")
    (Decimal('1234.50'), Decimal('1234'), Decimal('0.500'), Decimal('-9.00'))
    >>> read_amount("12/01/2018"), read_amount("5%"), read_amount("INV1000")
    (None, None, None)
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().replace("−", "-").split())
    enclosed = plain.startswith("(") and plain.endswith(")")
    plain = plain[1:-1].strip() if enclosed else plain
    plain = "".join("¤" if unicodedata.category(character) == "Sc" else character for character in plain)
    match = _AMOUNT.fullmatch(plain)
    if match is None:
        return None
    signs = [sign for sign in (match["minus"], match["inner"], match["trailing"]) if sign]
    if len(signs) + enclosed > 1:
        return None
    number = _read_number(match["number"], decimal_point=decimal_point)
    return -number if number is not None and (enclosed or "-" in signs) else number


def _read_number(text: str, *, decimal_point: bool) -> Decimal | None:
    digits = re.sub(r"[ ']", "", text).rstrip(".,")
    marks = re.findall(r"[.,]", digits)
    if not marks:
        return Decimal(digits)
    whole, _, fraction = digits.rpartition(marks[-1])
    certain = decimal_point and marks == ["."]
    thousands = len(set(marks)) == 1 and (len(marks) > 1 or (len(fraction) == 3 and whole not in ("", "0")))
    if thousands and not certain:
        return Decimal(re.sub(r"[.,]", "", digits))
    return Decimal(f"{re.sub(r'[.,]', '', whole) or '0'}.{fraction}")


def format_amount(text: str, decimals: int) -> str | None:
    """A printed amount as a number with a fixed count of decimals, or None where it has more, or is no amount.

    Where decimals are expected, a lone point before three digits is the decimal point: 9.005 has three decimals and is
    not 9005. A lone comma there separates thousands, and so does a point in a field without decimals.

    >>> format_amount("RM 1,234.5", 2), format_amount("(9)", 2), format_amount("1,005", 2), format_amount("75.000", 0)
    ('1234.50', '-9.00', '1005.00', '75000')
    >>> format_amount("9.005", 2), format_amount("9.005", 3), format_amount("1.234.567", 2)
    (None, '9.005', '1234567.00')
    """
    number = read_amount(text, decimal_point=decimals > 0)
    if number is None or number != round(number, decimals):
        return None
    return f"{round(number, decimals):.{decimals}f}"


def read_date(text: str, order: DateOrder | None = None) -> datetime.date | None:
    """A printed date, or None where it is none or its order is unknown.

    A year of four digits and a month written as a word say themselves where they stand; else `order` tells. Where no
    order is given and day and month can be exchanged for another day, the date is ambiguous and None. Years of two
    digits are of 1970 to 2069.

    >>> read_date("30 DEC 2017"), read_date("2017-12-30"), read_date("13/03/18", "dmy")
    (datetime.date(2017, 12, 30), datetime.date(2017, 12, 30), datetime.date(2018, 3, 13))
    >>> read_date("12/01/2018") is None, read_date("12/01/2018", "mdy")
    (True, datetime.date(2018, 12, 1))
    """
    words = re.findall(r"\d+|[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold())
    if len(words) == 4 and words[1] in ("st", "nd", "rd", "th"):
        del words[1]
    elif len(words) == 4 and words[2] in ("st", "nd", "rd", "th"):
        del words[2]
    if len(words) != 3 or re.search(r"[^\w\s./,\-'年月日]", text):
        return None
    months = [index for index, word in enumerate(words) if word[:3] in _MONTHS]
    numbers = [_MONTHS.index(word[:3]) + 1 if index in months else _digits(word) for index, word in enumerate(words)]
    if len(months) > 1 or any(number is None for number in numbers):
        return None
    found = {
        date
        for each in ((order,) if order else ("dmy", "mdy", "ymd"))
        if (date := _date(words, [number or 0 for number in numbers], each, months)) is not None
    }
    return found.pop() if len(found) == 1 else None


def _digits(word: str) -> int | None:
    return int(word) if word.isdecimal() and len(word) in (1, 2, 4) else None


def _date(words: list[str], numbers: list[int], order: str, months: list[int]) -> datetime.date | None:
    """The date in one order, corrected by what the words themselves say; None where they contradict it."""
    long_years = [index for index, word in enumerate(words) if len(word) == 4 and word.isdecimal()]
    if len(long_years) > 1:
        return None
    if long_years == [0]:
        order = "ymd"
    elif long_years == [2] and order == "ymd":
        return None
    if months:
        order = {0: "mdy", 1: "ymd" if order == "ymd" else "dmy"}.get(months[0], "")
    if len(order) != 3 or (long_years and order.index("y") != long_years[0]):
        return None
    day, month, year = (numbers[order.index(letter)] for letter in "dmy")
    if not long_years:
        year += 2000 if year < 70 else 1900
    try:
        return datetime.date(year, month, day)
    except ValueError:
        return None
