"""One JSON object a line on stderr, with the request's id where there is one: the format of every process of Graft.

Imported by both programs: no dependency but the standard library.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

LINES_A_MINUTE = 60
EXTRA = "graft"
"""`logger.info(..., extra={EXTRA: {...}})` adds fields."""


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["requestId"] = current
        line |= getattr(record, EXTRA, {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class Throttle(logging.Filter):
    """Lets so many lines a minute of a library through: what strangers make it say must not fill the disk."""

    def __init__(self, loggers: Iterable[str]) -> None:
        super().__init__()
        self._loggers = tuple(loggers)
        self._minute, self._count = 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(self._loggers):
            return True
        minute = int(record.created // 60)
        self._count = self._count + 1 if minute == self._minute else 1
        self._minute = minute
        return self._count <= LINES_A_MINUTE


def configure_logs(level: int = logging.INFO, quiet: Iterable[str] = ()) -> None:
    """Set up the logs of the whole process.

    Args:
        level: the lowest that is written.
        quiet: loggers of libraries that write warnings and errors only, and not endlessly many.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Throttle([*quiet, "asyncio"]))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)
