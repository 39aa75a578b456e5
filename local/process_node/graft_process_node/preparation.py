"""The effects around `process_spec`: fetch what a container's environment needs, and make its directories."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft_process_node.downward import PodFacts
from graft_process_node.kube.api_client import UNREACHABLE, ApiClient, ApiError
from graft_process_node.pod_access import write_kubeconfig
from graft_process_node.process_spec import (
    ContainerConfigError,
    ProcessSpec,
    Surroundings,
    build_process,
    references,
)
from graft_process_node.volumes import PodVolumes


async def prepare_process(
    client: ApiClient, container: Mapping[str, Any], facts: PodFacts, volumes: PodVolumes, pod_directory: Path
) -> ProcessSpec:
    """The process of a container as its spec, and the objects that it refers to, are now.

    Args:
        pod_directory: what belongs to the pod lies below it.

    Raises:
        ContainerConfigError: it refers to something that is not there, the API server does not answer, or a file lies
            where a mount belongs.
        OSError: the disk refuses.
    """
    try:
        objects = await volumes.fetch(references(container))
    except (ApiError, *UNREACHABLE) as error:
        raise ContainerConfigError(f"the API server does not answer: {error!r}") from error
    process = build_process(
        container,
        Surroundings(
            facts=facts,
            volumes=volumes.places,
            objects=objects,
            image_environment=_image_environment(),
            home=_home(pod_directory),
            termination_log=container_directory(pod_directory, container["name"]) / "termination-log",
            kubeconfig=write_kubeconfig(client, container, facts, volumes.places, pod_directory),
        ),
    )
    for mount in container.get("volumeMounts") or []:
        if mount.get("subPath") or mount.get("subPathExpr"):
            _make_sub_path(Path(process.mounts.rewrite(mount["mountPath"])))
    for place, target in process.mounts.links.items():
        _link(place, target)
    return process


def container_directory(pod_directory: Path, name: str) -> Path:
    """Where a container's logs and its termination message lie."""
    return pod_directory / "containers" / name


def _make_sub_path(place: Path) -> None:
    """A sub-path that is not there is an empty directory, as with a kubelet."""
    if not place.exists():
        place.mkdir(parents=True)


def _link(place: Path, target: Path) -> None:
    """Stand in for a mount inside an emptyDir."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        if place.readlink() == target:
            return
        place.unlink()
    elif place.exists():
        raise ContainerConfigError(f"volumeMounts: the emptyDir has `{place.name}` already, where a mount belongs")
    place.symlink_to(target)


def _home(pod_directory: Path) -> Path:
    home = pod_directory / "home"
    home.mkdir(parents=True, exist_ok=True)
    return home


def _image_environment() -> dict[str, str]:
    """What an image would set: this interpreter's programs come first."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
    }
