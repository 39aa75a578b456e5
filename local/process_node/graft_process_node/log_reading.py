"""Reading containers' log files the way `kubectl logs` asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

_POLL_SECONDS = 0.1


class LogRequestError(ValueError):
    """A query that has no meaning."""


@dataclass(frozen=True)
class LogRequest:
    """What to show.

    Args:
        since: nothing older than this, as the log writes times; they compare as text.
    """

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str], now: datetime) -> LogRequest:
        """From the query that the API server passes on.

        Raises:
            LogRequestError: a value is not a number or a time.
        """
        try:
            since = ""
            if query.get("sinceTime"):
                since = _log_time(datetime.fromisoformat(query["sinceTime"]))
            elif query.get("sinceSeconds"):
                since = _log_time(now - timedelta(seconds=int(query["sinceSeconds"])))
            tail = int(query["tailLines"]) if query.get("tailLines") else None
            limit = int(query["limitBytes"]) if query.get("limitBytes") else None
        except ValueError as error:
            raise LogRequestError(f"invalid log request: {error}") from error
        flags = {name: query.get(name) in ("true", "1") for name in ("follow", "previous", "timestamps")}
        return cls(tail_lines=tail, limit_bytes=limit, since=since, **flags)


def existing_lines(log: Path, request: LogRequest) -> list[bytes]:
    """The lines that are there already, as they are to be shown; with the file that was rotated away before them."""
    shown = list(_shown(_stored_lines(log), request))
    return shown if request.tail_lines is None else shown[len(shown) - min(request.tail_lines, len(shown)) :]


async def follow_lines(log: Path, request: LogRequest, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The lines that are there, then each new one, until the container's run has ended and all is shown."""
    position, inode = _size(log)
    for line in existing_lines(log, request):
        yield line
    while True:
        last_round = ended()
        size, current = _size(log)
        if current != inode:  # rotated: the rest of the old one lies beside it now
            for line in _shown(_whole_lines(Path(f"{log}.1"), position)[0], request):
                yield line
            position, inode = 0, current
        if size > position:
            records, position = _whole_lines(log, position)
            for line in _shown(records, request):
                yield line
        if last_round:
            return
        await asyncio.sleep(_POLL_SECONDS)


def _shown(records: Iterable[bytes], request: LogRequest) -> Iterator[bytes]:
    for record in records:
        moment, _, rest = record.partition(b" ")
        _, _, rest = rest.partition(b" ")
        tag, _, text = rest.partition(b" ")
        if request.since and moment.decode() < request.since:
            continue
        end = b"" if tag == b"P" else b"\n"
        yield (moment + b" " + text if request.timestamps else text) + end


def _stored_lines(log: Path) -> list[bytes]:
    return [*_whole_lines(Path(f"{log}.1"), 0)[0], *_whole_lines(log, 0)[0]]


def _whole_lines(path: Path, position: int) -> tuple[list[bytes], int]:
    """The whole lines from a position on, and where they end."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            content = file.read()
    except FileNotFoundError:
        return [], position
    end = content.rfind(b"\n") + 1
    return content[:end].split(b"\n")[:-1], position + end


def _size(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_ino


def _log_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
