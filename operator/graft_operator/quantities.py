"""Sizes as Kubernetes writes them."""

from __future__ import annotations

QUANTITY_PATTERN = r"^[1-9][0-9]{0,15}(k|M|G|T|Ki|Mi|Gi|Ti)?$"
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity_bytes(quantity: str) -> int:
    """Return a size in bytes."""
    digits = quantity.rstrip("kKMGTi")
    return int(digits) * _UNITS[quantity[len(digits) :]]
