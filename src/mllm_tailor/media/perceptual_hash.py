"""Finding pictures that are nearly the same: difference hashes, and a search for near ones that stays fast.

On documents the usual 64 bits only say that two pages are laid out alike (hundreds of pairs of the SROIE receipts lie
within 2 bits), so they pick the candidates and 2,304 finer bits decide. Measured on SROIE: copies saved at JPEG
quality 40 or at three quarters of the size differ in 15 to 25 % of the bits at the very most and in 5 to 12 % usually;
two different receipts in 23 % or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

COARSE, FINE = 8, 48  # cells a side: 8 * 8 = 64 bits (8 bytes) and 48 * 48 = 2304 bits (288 bytes)
COARSE_STEP, FINE_STEP = 8, 4  # grey levels by which brightness must rise; paper is never quite even
NEAR_COARSE = 2  # bits
NEAR_FINE = 0.2  # differing bits over bits set in either: pages are mostly white, so common zeros say nothing
TELLING_BITS = 32  # a picture with fewer fine bits set is blank and looks like every other blank one
BANDS = (
    (0, 22),
    (22, 43),
    (43, 64),
)  # hashes that differ in at most 2 bits agree wholly in at least one of three bands


def difference_bits(image: Image.Image, side: int, step: int) -> np.ndarray:
    """(side * side,) booleans: whether brightness rises from each cell of the shrunken picture to the next."""
    small = np.asarray(image.convert("L").resize((side + 1, side), Image.Resampling.BOX), dtype=np.int16)
    return np.asarray(small[:, 1:] - small[:, :-1] > step).ravel()


def picture_hash(image: Image.Image) -> str:
    """64 coarse and 2,304 fine bits of a picture, in hex; nearly the same for copies saved anew."""
    bits = [difference_bits(image, COARSE, COARSE_STEP), difference_bits(image, FINE, FINE_STEP)]
    return np.packbits(np.concatenate(bits)).tobytes().hex()


def near_pairs(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(i, j) for every `first[i]` and `second[j]` that show nearly the same; each pair once.

    Each band of the coarse bits is a bucket, so only pictures that agree in some band are compared at all.
    """
    left, right = _bytes(first), _bytes(second)
    left_bits, right_bits = np.unpackbits(left[:, :8], axis=1), np.unpackbits(right[:, :8], axis=1)
    for number, (start, stop) in enumerate(BANDS):
        left_keys, right_keys = _keys(left_bits[:, start:stop]), _keys(right_bits[:, start:stop])
        order = np.argsort(right_keys, kind="stable")
        lows = np.searchsorted(right_keys[order], left_keys, "left")
        highs = np.searchsorted(right_keys[order], left_keys, "right")
        for i in np.flatnonzero(highs > lows):
            for j in _near(left[i], right, order[lows[i] : highs[i]]):
                earlier = any((left_bits[i, a:b] == right_bits[j, a:b]).all() for a, b in BANDS[:number])
                if not earlier:  # the pair already met in an earlier band
                    yield int(i), int(j)


def _near(one: np.ndarray, others: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Those of `candidates` (rows of `others`) that show nearly what `one` shows."""
    coarse = np.bitwise_count(others[candidates, :8] ^ one[:8]).sum(1)
    candidates = candidates[coarse <= NEAR_COARSE]
    fine = others[candidates, 8:]
    distance = np.bitwise_count(fine ^ one[8:]).sum(1, dtype=np.int64)
    either = np.bitwise_count(fine | one[8:]).sum(1, dtype=np.int64)
    return np.asarray(candidates[(distance <= NEAR_FINE * either) & (either >= TELLING_BITS)])


def _bytes(hashes: Sequence[str]) -> np.ndarray:
    """(n, 296) bytes."""
    width = (COARSE * COARSE + FINE * FINE) // 8
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), width)


def _keys(bits: np.ndarray) -> np.ndarray:
    """(n,) the bits of each row read as one number."""
    weights = 1 << np.arange(bits.shape[1], dtype=np.int64)
    return np.asarray(bits.astype(np.int64) @ weights)
