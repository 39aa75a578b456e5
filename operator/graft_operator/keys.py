"""What names a pool and an object."""

from __future__ import annotations

from typing import NamedTuple


class PoolKey(NamedTuple):
    """Names a pool."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ObjectKey(NamedTuple):
    """Names an object."""

    kind: str
    namespace: str
    name: str
