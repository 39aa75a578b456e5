"""Kubernetes quantities (`500m`, `2Gi`) as exact numbers."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_SUFFIXES = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}
_QUANTITY = re.compile(r"(?P<number>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)(?P<suffix>[numkKMGTPE]?i?)")


def parse_quantity(text: str) -> Fraction:
    """The number that `text` stands for.

    Raises:
        ValueError: it is no quantity.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match["suffix"] not in _SUFFIXES:
        raise ValueError(f"`{text}` is not a quantity such as 500m or 2Gi")
    return Fraction(match["number"]) * _SUFFIXES[match["suffix"]]


def in_units(quantity: str, divisor: str) -> str:
    """`quantity` divided by `divisor`, rounded up to a whole number, as the downward API shows it."""
    unit = parse_quantity(divisor)
    return str(math.ceil(parse_quantity(quantity) / (unit or 1)))
