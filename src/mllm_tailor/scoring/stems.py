"""Porter's stemmer ("An algorithm for suffix stripping", 1980): `stirring`, `stirred` and `stirs` become `stir`."""

from __future__ import annotations

import re
from functools import lru_cache

_CONSONANTS = re.compile(r"[aeiou]+[^aeiou]+")

# Endings of steps 2, 3 and 4 with what takes their place; the longest that fits is tried, and only that one.
_SECOND = {
    **{"ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "abli": "able"},
    **{"alli": "al", "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate"},
    **{"alism": "al", "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive"},
    "biliti": "ble",
}
_THIRD = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_FOURTH = {
    **dict.fromkeys(("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent"), ""),
    **dict.fromkeys(("ou", "ism", "ate", "iti", "ous", "ive", "ize"), ""),
    **{"sion": "s", "tion": "t"},  # these letters stay where `ion` goes
}


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a lower-case word; one of two letters or with anything but a to z is left alone.

    >>> [stem(word) for word in ("stirring", "stirred", "potatoes", "relational", "happy")]
    ['stir', 'stir', 'potato', 'relat', 'happi']
    """
    if len(word) < 3 or not re.fullmatch("[a-z]+", word):
        return word
    word = _past(_plural(word))
    if word.endswith("y") and _vowel(word[:-1]):
        word = word[:-1] + "i"
    for endings, least in ((_SECOND, 0), (_THIRD, 0), (_FOURTH, 1)):
        word = _replace(word, endings, least)
    return _tidy(word)


def _shape(word: str) -> str:
    """The word with every y that acts as a vowel written i, and one that acts as a consonant written j."""
    shaped = ""
    for letter in word:
        shaped += letter if letter != "y" else "i" if shaped and shaped[-1] not in "aeiou" else "j"
    return shaped


def _measure(word: str) -> int:
    """How often vowels are followed by consonants: m in the paper."""
    return len(_CONSONANTS.findall(_shape(word)))


def _vowel(word: str) -> bool:
    return bool(re.search("[aeiou]", _shape(word)))


def _short(word: str) -> bool:
    """Whether it ends consonant, vowel, consonant, the last not w, x or y: *o in the paper."""
    return bool(re.search("[^aeiou][aeiou][^aeiouwx]$", _shape(word))) and not word.endswith("y")


def _plural(word: str) -> str:
    """Step 1a."""
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
    """Step 1b."""
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    cut = next((word[: -len(end)] for end in ("ed", "ing") if word.endswith(end) and _vowel(word[: -len(end)])), None)
    if cut is None:
        return word
    if cut.endswith(("at", "bl", "iz")):
        return cut + "e"
    if re.search(r"([^aeiouylsz])\1$", cut):
        return cut[:-1]
    return cut + "e" if _measure(cut) == 1 and _short(cut) else cut


def _replace(word: str, endings: dict[str, str], least: int) -> str:
    """Steps 2, 3 and 4: the longest ending gives way where more than `least` measures stand before it."""
    ending = max((end for end in endings if word.endswith(end)), key=len, default=None)
    if ending is None:
        return word
    new = endings[ending]
    before = word[: -len(ending)]
    return before + new if _measure(before + new if ending in ("sion", "tion") else before) > least else word


def _tidy(word: str) -> str:
    """Step 5."""
    if word.endswith("e") and (_measure(word[:-1]) > 1 or (_measure(word[:-1]) == 1 and not _short(word[:-1]))):
        word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word
