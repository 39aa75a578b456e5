"""A directory whose files change all at once, as a kubelet's ConfigMap volumes do.

`..data` is a symbolic link to a directory of one version, and each entry is a link through it: a reader sees one
version or the next, never half of each.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from graft_process_node.volume_files import VolumeFile

_DATA = "..data"


def write_files(directory: Path, files: Mapping[str, VolumeFile]) -> bool:
    """Make `directory` hold exactly `files`.

    Returns:
        Whether anything changed.

    Raises:
        OSError: the disk refuses.
    """
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / _DATA
    if link.is_symlink() and _read_files(link.resolve()) == dict(files):
        return False
    version = Path(tempfile.mkdtemp(prefix="..v", dir=directory))
    version.chmod(0o755)
    for path, file in files.items():
        place = version / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.content)
        place.chmod(file.mode)
    before = link.resolve() if link.is_symlink() else None
    swap = directory / "..data_next"
    swap.unlink(missing_ok=True)
    swap.symlink_to(version.name)
    os.replace(swap, link)
    _link_entries(directory, {PurePosixPath(path).parts[0] for path in files})
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)
    return True


def _link_entries(directory: Path, names: set[str]) -> None:
    for entry in directory.iterdir():
        if entry.is_symlink() and entry.name not in names and not entry.name.startswith(".."):
            entry.unlink()
    for name in names:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"{_DATA}/{name}")


def _read_files(version: Path) -> dict[str, VolumeFile]:
    return {
        str(path.relative_to(version)): VolumeFile(path.read_bytes(), path.stat().st_mode & 0o7777)
        for path in version.rglob("*")
        if path.is_file()
    }
