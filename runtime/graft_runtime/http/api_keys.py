"""The keys of a pool's clients: hashes in the files of a Secret, read again when they change."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from hmac import compare_digest
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from graft_runtime.answering.callers import Caller
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.threads import Threads

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 5.0
MAX_ENTRIES = 256
MAX_ENTRY_BYTES = 64 << 10
_SCHEME = "bearer "


class KeyEntry(BaseModel):
    """What one file of the Secret says of a key; the file's name is the key's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the key, which is random: nobody can try all, so that a slow hash would only slow the pod."""
    models: list[str] = Field(min_length=1, max_length=1024)
    """The names that it may use; `*` for all."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """That this pod takes; None: any number."""


class ApiKeys:
    """The keys that are in force. One event loop.

    Args:
        directory: where the Secret is mounted. Where there is none, nobody has a key.
        clock: seconds.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._clock = directory, clock
        self._thread = Threads(1, "keys")
        self._entries: Mapping[str, KeyEntry] = {}
        self._refused: frozenset[str] = frozenset()
        self._left: dict[str, tuple[float, float]] = {}
        """By the key's name: how many requests it has left, and when that was so."""

    async def follow(self) -> NoReturn:
        """Read the keys again and again."""
        while True:
            self.take(*await self._thread.run(read_keys, self._directory))
            await asyncio.sleep(FOLLOW_SECONDS)

    def take(self, entries: Mapping[str, KeyEntry], refused: frozenset[str]) -> None:
        """Put keys in force, and say what changed.

        Args:
            entries: by name.
            refused: the names of files that hold no key.
        """
        if entries != self._entries:
            logger.info("API keys in force: %s", ", ".join(f"`{name}`" for name in sorted(entries)) or "none")
        for name in sorted(refused - self._refused):
            logger.error("the Secret's `%s` is no API key: expected JSON with sha256, models, requestsPerMinute", name)
        self._entries, self._refused = entries, refused
        self._left = {name: left for name, left in self._left.items() if name in entries}

    def caller(self, authorization: str) -> Caller:
        """Return who sends this header. Raises GraftError: Unauthenticated."""
        key = authorization[len(_SCHEME) :].strip() if authorization.lower().startswith(_SCHEME) else ""
        sent, found = hashlib.sha256(key.encode()).hexdigest(), None
        for name, entry in self._entries.items():  # all of them: the time tells nothing of where it was found
            if compare_digest(entry.sha256, sent):
                found = name
        if found is None or not key:
            raise GraftError(
                ErrorCode.UNAUTHENTICATED,
                "the request has no API key that is in force here",
                hint="send `Authorization: Bearer KEY`; whoever runs the pool hands keys out (spec.apiKeys)",
            )
        return Caller(found, frozenset(self._entries[found].models))

    def count(self, caller: Caller) -> None:
        """Count a request of somebody who has just been let in. Raises GraftError: RateLimited."""
        assert caller.name is not None, "he has a key"
        name, a_minute = caller.name, self._entries[caller.name].requests_per_minute
        if a_minute is None:
            return
        now = self._clock()
        left, since = self._left.get(name, (float(a_minute), now))
        left = min(a_minute, left + (now - since) * a_minute / 60)
        if left < 1:
            self._left[name] = (left, now)
            raise GraftError(
                ErrorCode.RATE_LIMITED,
                f"the API key `{name}` has had its {a_minute} requests a minute",
                hint="send fewer, or ask whoever runs the pool for more",
                retry_after=(1 - left) * 60 / a_minute,
            )
        self._left[name] = (left - 1, now)


def read_keys(directory: Path) -> tuple[dict[str, KeyEntry], frozenset[str]]:
    """Return the keys in a directory, and the names of files that hold none."""
    try:
        names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    except OSError:
        return {}, frozenset()
    entries = {name: _read_entry(directory / name) for name in names[:MAX_ENTRIES]}
    found = {name: entry for name, entry in entries.items() if entry is not None}
    return found, frozenset(names) - frozenset(found)


def _read_entry(path: Path) -> KeyEntry | None:
    try:
        with path.open("rb") as file:
            return KeyEntry.model_validate_json(file.read(MAX_ENTRY_BYTES))
    except (OSError, ValidationError):
        return None
