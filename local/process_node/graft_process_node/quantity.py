"""Kubernetes quantities (`500m`, `2Gi`) as exact numbers."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_SUFFIXES = {suffix: Fraction(1000) ** power for power, suffix in enumerate(("n", "u", "m", "", *"kMGTPE"), start=-3)}
_SUFFIXES |= {f"{letter}i": Fraction(1024) ** power for power, letter in enumerate("KMGTPE", start=1)}
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
