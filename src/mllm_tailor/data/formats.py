"""In how many ways a field is written: dates come in a dozen, amounts with and without a currency."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_NUMERIC = re.compile(r"(?P<first>\d{1,4})\s*[-/. ]\s*(?P<month>\d{1,2})\s*[-/. ]\s*(?P<last>\d{1,4})(?!\d)")
_PACKED = re.compile(r"\d{8}(?!\d)")
_NAMED = re.compile(
    rf"(?:\d{{1,2}}\W*{_MONTH}\W*(?:\d{{4}}|\d{{2}})|{_MONTH}\W*\d{{1,2}}\W+(?:\d{{4}}|\d{{2}}))(?!\d)", re.I
)
_CLOCK = re.compile(
    r"(?:[ T,]+\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?\s*(?:[ap]m|Z|[+-]\d{2}:?\d{2})?)?(?:\s*\(?[a-z]{3,9}\)?)?", re.I
)
YEARS = range(1900, 2101)

# The codes of ISO 4217 in use and the signs and abbreviations that are printed for them.
CURRENCIES = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP "
    "CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF "
    "IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD "
    "MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB "
    "RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD "
    "UYU UZS VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW RM RS RP KR KC FT LEI TL DM SFR FR DH KSH TSH US$ S$ A$ AU$ "
    "C$ CA$ HK$ NT$ NZ$ R$ MX$ RMB B/. S/. R"
)
_SIGN = (
    "(?:"
    + "|".join([*sorted(map(re.escape, CURRENCIES.split()), key=len, reverse=True), r"zł|Kč|руб\.?|[$€£¥₹₩₺₽₫₱฿₪元円]"])
    + r")\.?"
)
_NUMBER = r"(?:\d{1,3}(?:[., '’]\d{3})+|\d+)?(?P<cents>[.,]\d{1,4})?"
_AMOUNT = re.compile(
    rf"[-+(]?\s*(?P<before>{_SIGN})?\s*[-+]?\s*(?=[\d.,]*\d){_NUMBER}\s*[-%]?\s*(?P<after>{_SIGN})?\s*\)?", re.I
)


@dataclass(frozen=True)
class Pattern:
    """One way a field is written: digits as 9, letters as A or a."""

    shape: str
    count: int
    examples: tuple[str, ...]  # ids of samples written so


def is_date(text: str) -> bool:
    """Whether a text is a date as people print them, and one that the calendar has.

    >>> [is_date(text) for text in ("25/12/2018", "1 Jan 2018", "2018-03-04 10:22", "20180304")]
    [True, True, True, True]
    >>> [is_date(text) for text in ("9.00", "40213105", "012-34-5678", "1.2.3")]
    [False, False, False, False]
    """
    text = text.strip()
    match = _NAMED.match(text) or _NUMERIC.match(text) or _PACKED.match(text)
    if match is None or not _CLOCK.fullmatch(text, match.end()):
        return False
    if match.re is _NAMED:
        return True
    if match.re is _NUMERIC:
        return _in_calendar(match["first"], match["month"], match["last"])
    digits = match[0]
    return any(
        _in_calendar(*parts) for parts in ((digits[:4], digits[4:6], digits[6:]), (digits[:2], digits[2:4], digits[4:]))
    )


def _in_calendar(first: str, middle: str, last: str) -> bool:
    """Whether three numbers are year, month, day, or day and month in any order and a year."""
    if len(first) == 4:
        return int(first) in YEARS and _day_and_month(middle, last)
    if len(last) == 4:
        return int(last) in YEARS and _day_and_month(first, middle)
    return len(first) <= 2 and len(last) == 2 and (_day_and_month(first, middle) or _day_and_month(middle, last))


def _day_and_month(one: str, other: str) -> bool:
    low, high = sorted((int(one), int(other)))
    return 1 <= low <= 12 and 1 <= high <= 31


def is_amount(text: str) -> bool:
    """Whether a text is an amount, with or without a currency out of a known list.

    >>> [is_amount(text) for text in ("9.00", "RM 9.00", "$1,200.50", "(9.00)", ".50", "1.234,50 €")]
    [True, True, True, True, True, True]
    >>> [is_amount(text) for text in ("nine", "INV1000", "LH400", "r000.jpg")]
    [False, False, False, False]
    """
    return _AMOUNT.fullmatch(text.strip()) is not None


def is_sum(text: str) -> bool:
    """Whether a text is an amount with cents or a currency; a bare whole number is as likely a code.

    >>> [is_sum(text) for text in ("9.00", "RM 9", "RM9.50", "900", "INV1000", "KR12")]
    [True, True, True, False, False, False]
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        return False
    currency = match["before"] or match["after"] or ""
    joined = currency.isalpha() and not re.search(r"\s", text.strip())  # KR12 may be a code
    return len(match["cents"] or "") == 3 or bool(currency and not joined)


def shape(value: str) -> str:
    """How a value is written, whatever its digits: the currency stays, the whole digits of an amount count as one.

    >>> shape("25/12/2018"), shape("RM 1,234.50"), shape("3 Mar 2018")
    ('99/99/9999', 'RM 9,999.99', '9 Aaa 9999')
    """
    if is_date(value):
        return re.sub(r"[a-z]", "a", re.sub(r"[A-Z]", "A", re.sub(r"\d", "9", value)))
    if is_amount(value):
        whole, dot, cents = value.rpartition(".")
        digits = re.sub(r"\d+", "9", whole if dot else cents)
        digits = re.sub(r"9(,9)+", "9,999", digits)
        return digits + dot + (re.sub(r"\d", "9", cents) if dot else "")
    return re.sub(r"[A-Z]+", "A", re.sub(r"[a-z]+", "a", re.sub(r"\d+", "9", value)))


def patterns(values: Iterable[tuple[str, str]], kept: int = 3) -> tuple[Pattern, ...]:
    """Ways in which (sample id, value) pairs are written, the most frequent first."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for identifier, value in values:
        form = shape(value)
        counts[form] += 1
        ids = examples.setdefault(form, [])
        if len(ids) < kept:
            ids.append(identifier)
    return tuple(Pattern(form, count, tuple(examples[form])) for form, count in counts.most_common())
