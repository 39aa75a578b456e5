"""Where things that are expensive to make are kept between runs, and how two runs share them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
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


def made_once(directory: Path, make: Callable[[Path], None]) -> Path:
    """Have `make` make the directory at the path that it is given, unless it is there; then it is whole.

    Two processes that do this at once make it once. `make` may keep other files beside its directory.
    """
    if not directory.is_dir():
        with exclusively(directory.with_name(f"{directory.name}.lock")):
            if not directory.is_dir():  # another process may have made it while we waited
                for abandoned in directory.parent.glob(f".{directory.name}-*"):  # by one that was killed
                    shutil.rmtree(abandoned, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
                    new = Path(scratch) / "made"
                    make(new)
                    new.replace(directory)
    return directory
