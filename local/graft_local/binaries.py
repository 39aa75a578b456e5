"""The programs of the control plane: found, or built once from pinned Go modules and kept in the cache."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft_local import go_toolchain
from graft_local.cache import cache_directory, made_once
from graft_local.errors import LocalClusterError
from graft_local.progress import Progress

KUBERNETES_VERSION = "1.34.4"
ETCD_VERSION = "3.6.5"

_MODULES = Path(__file__).parent / "go"


@dataclass(frozen=True)
class Group:
    """Programs that are built together from the Go module in the directory `module`.

    `packages` maps a program's name to its Go package.
    """

    name: str
    version: str
    module: Path
    packages: Mapping[str, str]
    stamped: Sequence[str] = ()
    """Go packages whose variables tell the version; without them the API server would call itself v0.0.0."""

    @property
    def key(self) -> str:
        """The name of its directory in the cache."""
        return f"{self.name}-{self.version}-{platform.system().lower()}-{platform.machine()}"

    @property
    def linker_flags(self) -> str:
        major, minor, _ = self.version.split(".")
        values = {"gitVersion": f"v{self.version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        stamps = (f"-X {package}.{name}={value}" for package in self.stamped for name, value in values.items())
        return " ".join(("-s -w", *stamps))


KUBERNETES = Group(
    name="kubernetes",
    version=KUBERNETES_VERSION,
    module=_MODULES / "kubernetes",
    packages={
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    },
    stamped=("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"),
)
ETCD = Group(name="etcd", version=ETCD_VERSION, module=_MODULES / "etcd", packages={"etcd": "."})

Build = Callable[[Group, Path, Progress], None]
"""Puts every program of the group into the directory, or raises LocalClusterError."""


@dataclass(frozen=True)
class Binaries:
    """Where each program is."""

    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]


def ensure_binaries(progress: Progress) -> Binaries:
    """Find every program of the control plane, building what is nowhere.

    Each is taken from `$KUBEBUILDER_ASSETS` where it is there in the pinned minor version, else from the cache, else
    built. Two processes that do this at once build once.

    Raises:
        LocalClusterError: a build failed, or there is no Go toolchain.
    """
    paths: dict[str, Path] = {}
    for group in (ETCD, KUBERNETES):
        paths |= ensure_group(group, cache_directory() / "binaries", build_from_source, progress)
    return Binaries(paths)


def ensure_group(group: Group, cache: Path, build: Build, progress: Progress) -> dict[str, Path]:
    """The paths of the programs of one group; see `ensure_binaries`."""

    def make(directory: Path) -> None:
        directory.mkdir()
        build(group, directory, progress)
        absent = [name for name in group.packages if not os.access(directory / name, os.X_OK)]
        if absent:
            raise LocalClusterError(f"the build of {group.name} {group.version} made no {', '.join(absent)}")

    paths = _given(group)
    if paths.keys() != group.packages.keys():
        built = made_once(cache / group.key, make)
        paths = {name: built / name for name in group.packages} | paths
    return paths


def build_from_source(group: Group, output: Path, progress: Progress) -> None:
    """Build the programs of the group; the `Build` of all groups here."""
    go = go_toolchain.find_go()
    with (
        progress.step(f"building {group.name} {group.version} (once)") as step,
        tempfile.TemporaryDirectory(prefix=f"graft-{group.name}-") as scratch,
    ):
        # A copy: the installed package may be read-only, or lie inside somebody's Go module.
        module = Path(shutil.copytree(group.module, Path(scratch) / "module"))
        go_toolchain.build(
            go, module, list(group.packages.values()), output, linker_flags=group.linker_flags, step=step
        )


def _given(group: Group) -> dict[str, Path]:
    """Programs of the pinned minor version that `$KUBEBUILDER_ASSETS` holds."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        return {}
    candidates = {name: Path(assets) / name for name in group.packages}
    return {name: path for name, path in candidates.items() if _minor_version(path) == group.version.split(".")[:2]}


def _minor_version(program: Path) -> list[str] | None:
    """The major and minor version that a program tells, `None` where there is no such program."""
    arguments = ["version", "--client"] if program.name == "kubectl" else ["--version"]
    try:
        answer = subprocess.run([program, *arguments], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"(\d+)\.(\d+)\.\d+", answer.stdout)
    return list(version.groups()) if version else None
