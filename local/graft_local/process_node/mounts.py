"""Where a container's mounts lie on this machine, and the rewriting of paths that stands in for a mount namespace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from graft_local.process_node.expansion import expand


class InvalidMountError(ValueError):
    """A mount that names no volume, or whose sub-path leaves it."""


@dataclass(frozen=True)
class Mounts:
    """A container's mounts.

    Args:
        places: mount path, absolute and without a closing slash → the path on this machine.
    """

    places: Mapping[str, str]

    def rewrite(self, text: str) -> str:
        """`text` with a mount path at its start replaced, if all of `text` is a path at or below one."""
        if not text.startswith("/"):
            return text
        for mount_path, place in self.places.items():
            if text.rstrip("/") == mount_path:
                return place
            if text.startswith(mount_path + "/"):
                return place + text[len(mount_path) :]
        return text


def container_mounts(container: Mapping[str, Any], volumes: Mapping[str, Path], variables: Mapping[str, str]) -> Mounts:
    """The mounts of a container whose pod's volumes lie at `volumes` (by name).

    Raises:
        InvalidMountError: a mount names no volume, or a sub-path is absolute or has `..` in it.
    """
    places = {}
    for mount in container.get("volumeMounts") or []:
        volume = volumes.get(mount["name"])
        if volume is None:
            raise InvalidMountError(f"volumeMounts: the pod has no volume `{mount['name']}`")
        inner = mount.get("subPath") or expand(mount.get("subPathExpr") or "", variables)
        if inner.startswith("/") or ".." in PurePosixPath(inner).parts:
            raise InvalidMountError(f"volumeMounts: subPath `{inner}` leaves the volume `{mount['name']}`")
        places[mount["mountPath"].rstrip("/")] = str(volume / inner if inner else volume)
    return Mounts(places)
