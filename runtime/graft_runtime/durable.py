"""Files and directories that are there whole or not at all, also after the node has lost power."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
"""Of what is not whole: a process that was killed leaves it behind."""


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file under its name at once, in place of the one that has it.

    Args:
        path: of the file; of two that write the same one at the same time, the last one's content stays.
        content: all of it.
        mode: its permissions, less the process's umask.

    Raises:
        OSError: nothing has changed.
    """
    with replacing(path) as partial, open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a file to write; once the block has ended well, that file gets the name `path`.

    Raises:
        OSError: nothing has changed.
    """
    partial = _partial(path)
    partial.unlink(missing_ok=True)
    try:
        yield partial
        put_in_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Give the path of a directory to fill with files; once the block has ended well, it gets the name `path`.

    Raises:
        OSError: nothing has changed, as where `path` is there already and not empty.
    """
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            sync(file)
        put_in_place(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _partial(path: Path) -> Path:
    """Return where this thread writes what is to get the name `path`.

    Nobody else writes there: no other thread, and no other pod on a volume of both, where each runtime is process 1.
    """
    return path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.{threading.get_native_id()}{PARTIAL_SUFFIX}")


def put_in_place(partial: Path, path: Path) -> None:
    """Give a whole file, or a directory of files on the disk, its name. Raises OSError."""
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring the bytes of a file, or the names in a directory, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
