"""The images of a run: `make images` by buildah, and the archives that containerd takes them from.

What they are made of is Python's image and PyTorch's index of wheels for CPUs. Where these can't be reached, a base is
made of Debian's packages and this machine's Python, and a wheel of the torch that is installed here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from graft_local.cache import made_once
from graft_local.errors import LocalClusterError
from graft_local.progress import Progress

from tests.e2e.lab.thin_torch import ensure_wheel

REPOSITORY = Path(__file__).parents[3]
TAG = "0.1.0"
NAMES = ("graft-operator", "graft-runtime")
PAUSE = "localhost/pause:e2e"

_BASE = "docker.io/library/python:3.11-slim-bookworm"
_STAND_IN = "localhost/python:e2e"
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_LIBRARIES = "ca-certificates,libbz2-1.0,libexpat1,libffi8,liblzma5,libsqlite3-0,libssl3,libuuid1,netbase,tzdata,zlib1g"
"""What Python links to."""


class ImageBuilds:
    """Builds with buildah, its storage below `cache`; in a mount namespace of its own, which ends with this process."""

    def __init__(self, cache: Path, progress: Progress) -> None:
        self._cache, self._progress = cache, progress
        storage = cache / "storage.conf"
        cache.mkdir(parents=True, exist_ok=True)
        roots = {"graphroot": cache / "storage", "runroot": cache / "run"}
        lines = ["[storage]", 'driver = "overlay"', *(f'{name} = "{path}"' for name, path in roots.items())]
        storage.write_text("\n".join(lines) + "\n")
        # What is mounted is kept count of there: it is gone with this namespace, and so must the count be.
        roots["runroot"].mkdir(exist_ok=True)
        _checked("mount", "-t", "tmpfs", "tmpfs", str(roots["runroot"]))
        scratch = cache / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)  # of builds that were interrupted
        scratch.mkdir()
        own = {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(scratch)}
        self._environment = os.environ | own

    def archives(self, pause: Path, directory: Path) -> dict[str, Path]:
        """Image → archive in `directory`, made anew."""
        with self._progress.step("building the images"):
            self._buildah("rm", "--all")
            self._make_images()
            self._from_scratch(PAUSE, [(pause, "/pause")], ["--entrypoint", '["/pause"]'])
        found = {}
        for name in (*(f"docker.io/library/{name}:{TAG}" for name in NAMES), PAUSE):
            found[name] = directory / f"{name.rpartition('/')[2].partition(':')[0]}.tar"
            with self._progress.step(f"writing {found[name].name}"):
                local = f"localhost/{name.rpartition('/')[2]}"
                self._buildah("push", "--quiet", "--disable-compression", local, f"oci-archive:{found[name]}:{name}")
        return found

    def _make_images(self) -> None:
        base, volumes = self._base()
        index = _TORCH_INDEX
        if not _answers(f"{_TORCH_INDEX}/torch/"):
            index, volumes = "file:///wheels", {**volumes, self._torch_index(): "/wheels"}
        arguments = ["--pull=never", "--layers", "--build-arg", f"BASE_IMAGE={base}", "--build-arg", "FLAVOUR=cpu"]
        arguments += ["--build-arg", f"TORCH_INDEX_URL={index}"]
        for source, place in volumes.items():
            arguments += ["--volume", f"{source}:{place}:ro"]
        self._run(["make", "images", "IMAGE_TOOL=buildah", f"IMAGE_TAG={TAG}", f"IMAGE_ARGS={' '.join(arguments)}"])

    def _base(self) -> tuple[str, Mapping[Path, str]]:
        """The base image, which is there then, and what its builds are shown of this machine."""
        if _answers("https://registry-1.docker.io/v2/"):
            self._buildah("pull", "--quiet", _BASE)
            return _BASE, {}
        if not self._buildah("images", "--quiet", "--filter", f"reference={_STAND_IN}").strip():
            root = made_once(self._cache / "base", _make_root)
            environment = ["--env", f"PIP_CERT={_CERTIFICATES}", "--env", "LANG=C.UTF-8"]
            self._from_scratch(_STAND_IN, [(root, "/")], environment)
        return _STAND_IN, {_CERTIFICATES: str(_CERTIFICATES)}

    def _torch_index(self) -> Path:
        """An index with the one wheel of torch."""
        index = self._cache / "wheels"
        wheel = ensure_wheel(index / "torch")
        (index / "torch" / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>\n')
        return index

    def _from_scratch(self, name: str, content: list[tuple[Path, str]], config: list[str]) -> None:
        container = self._buildah("from", "scratch").strip()
        for source, place in content:
            self._buildah("copy", "--quiet", container, str(source), place)
        self._buildah("config", *config, container)
        self._buildah("commit", "--quiet", "--rm", container, name)

    def _buildah(self, *arguments: str) -> str:
        return self._run(["buildah", *arguments])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, check=False, cwd=REPOSITORY, env=self._environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise LocalClusterError(f"`{' '.join(command)}` failed:\n{done.stderr[-3000:]}")
        return done.stdout


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.request.HTTPError:
        return True  # it is there, and wants a token
    except OSError:
        return False
    return True


def _make_root(root: Path) -> None:
    """Debian's base and Python's libraries by debootstrap, and this machine's Python at /usr/local."""
    _checked("debootstrap", "--variant=minbase", f"--include={_LIBRARIES}", "bookworm", str(root))
    for directory in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "dev"):
        shutil.rmtree(root / directory)
        (root / directory).mkdir()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    local = root / "usr" / "local"
    prefix = Path(sys.base_prefix)
    shutil.copytree(
        prefix / "lib" / version,
        local / "lib" / version,
        ignore=shutil.ignore_patterns("site-packages", "test", "__pycache__", "*.a"),
    )
    (local / "lib" / version / "site-packages").mkdir()
    for library in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(library, local / "lib")
    shutil.copy2(prefix / "bin" / version, local / "bin")
    for name in ("python3", "python"):
        (local / "bin" / name).symlink_to(version)
    _checked("chroot", str(root), "/sbin/ldconfig")
    _checked("chroot", str(root), "/usr/local/bin/python3", "-m", "ensurepip")


def _checked(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise LocalClusterError(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-3000:]}")
