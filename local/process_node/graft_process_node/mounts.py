"""Where a container's mounts lie on this machine, and the rewriting of paths that stands in for a mount namespace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from graft_process_node.expansion import expand


class InvalidMountError(ValueError):
    """A mount that names no volume, or whose sub-path leaves it."""


@dataclass(frozen=True)
class Mounts:
    """A container's mounts.

    Args:
        places: mount path, absolute and without a closing slash → the path on this machine.
        links: where a link has to stand for a mount that lies inside another one → what it leads to.
    """

    places: Mapping[str, str]
    links: Mapping[Path, Path] = field(default_factory=dict)

    def rewrite(self, text: str) -> str:
        """`text` with a mount path at its start replaced, if all of `text` is a path at or below one."""
        if not text.startswith("/"):
            return text
        for mount_path, place in sorted(self.places.items(), key=lambda item: len(item[0]), reverse=True):
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
    mounts = container.get("volumeMounts") or []
    for mount in mounts:
        volume = volumes.get(mount["name"])
        if volume is None:
            raise InvalidMountError(f"volumeMounts: the pod has no volume `{mount['name']}`")
        inner = mount.get("subPath") or expand(mount.get("subPathExpr") or "", variables)
        if inner.startswith("/") or ".." in PurePosixPath(inner).parts:
            raise InvalidMountError(f"volumeMounts: subPath `{inner}` leaves the volume `{mount['name']}`")
        places[_path(mount)] = str(volume / inner if inner else volume)
    links = {}
    for mount in mounts:
        outer = enclosing_mount(mount, mounts)
        if outer is not None:
            inside = PurePosixPath(mount["mountPath"]).relative_to(outer["mountPath"])
            links[Path(places[_path(outer)]) / inside] = Path(places[_path(mount)])
    return Mounts(places, links)


def enclosing_mount(mount: Mapping[str, Any], mounts: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The innermost of `mounts` that `mount` lies inside of, if there is one."""
    around = [other for other in mounts if _path(mount).startswith(_path(other) + "/")]
    return max(around, key=lambda other: len(_path(other)), default=None)


def _path(mount: Mapping[str, Any]) -> str:
    return str(mount["mountPath"]).rstrip("/")
