"""The faults of the local cluster, told so that a person can act on them."""

from __future__ import annotations


class LocalClusterError(Exception):
    """What is wrong, and what to do about it.

    Args:
        what: what is wrong, with the value at fault; one sentence without a full stop.
        hint: what to do about it.
    """

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n\nhint: {self.hint}" if self.hint else self.what
