"""Where things that are expensive to make are kept between runs, and how two runs share them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_directory() -> Path:
    """`$GRAFT_CACHE`, else `~/.cache/graft`. It need not exist yet."""
    named = os.environ.get("GRAFT_CACHE")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "graft"


@contextmanager
def exclusively(lock: Path) -> Iterator[None]:
    """Hold the lock file for the length of the block; waits for another process or thread that holds it.

    The kernel lets go of it when the process ends, however it ends. The file stays.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
