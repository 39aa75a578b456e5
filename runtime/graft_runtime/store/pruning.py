"""What a cache keeps beside its checkpoints, removed once it is of no use. Blocking.

Other pods may use the same cache: they lose nothing that they are writing, and a copy at most where they had use for
what is removed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from graft_runtime.durable import PARTIAL_SUFFIX

WRITING_SECONDS = 3600.0
"""Whoever writes one of these files is done long before."""
UNUSED_SECONDS = 30 * 86_400.0


def remove_partial(directory: Path) -> None:
    """Remove files that were being written by processes that were killed, before this one writes any. Raises OSError.

    Args:
        directory: with the names that the files were to get.
    """
    for path, age in _aged(directory.glob(f"*{PARTIAL_SUFFIX}")):
        if age > WRITING_SECONDS:
            path.unlink(missing_ok=True)


def prune_identities(identities: Path, checkpoints: Path) -> None:
    """Remove identities of sources whose checkpoint is gone, or that nobody has asked about for a month.

    Args:
        identities: files with digests, by what their sources looked like.
        checkpoints: directories, by hex digest.

    Raises:
        OSError: the rest stays.
    """
    known = {path.name for path in checkpoints.iterdir()}
    for path, age in _aged(path for path in identities.iterdir() if path.suffix != PARTIAL_SUFFIX):
        if age > UNUSED_SECONDS or (age > WRITING_SECONDS and _digits(path) not in known):
            path.unlink(missing_ok=True)


def _aged(paths: Iterator[Path]) -> Iterator[tuple[Path, float]]:
    """Yield files, and how many seconds ago each was written or used last; without those that others have removed."""
    now = time.time()
    for path in list(paths):
        try:
            yield path, now - path.stat().st_mtime
        except FileNotFoundError:
            continue


def _digits(identity: Path) -> str:
    """Return the hex digest that an identity names; nothing where it is damaged or gone."""
    try:
        return identity.read_text().removeprefix("sha256:")
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
