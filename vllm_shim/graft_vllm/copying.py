"""`python -m graft_vllm.copying DIRECTORY`: copy the shim, and what it imports of Graft, for vLLM's Python."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("graft_vllm", "graft_runtime")


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy the packages into a directory; what is there under their names is replaced."""
    parser = argparse.ArgumentParser(prog="python -m graft_vllm.copying", description=__doc__)
    parser.add_argument("directory", type=Path, help="for vLLM's PYTHONPATH")
    directory: Path = parser.parse_args(arguments).directory
    for name in PACKAGES:
        shutil.rmtree(directory / name, ignore_errors=True)
        shutil.copytree(directory_of(name), directory / name, ignore=shutil.ignore_patterns("__pycache__"))


def directory_of(name: str) -> Path:
    """Return where a package lies. Raises ModuleNotFoundError."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"there is no package {name}", name=name)
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    main()
