"""The pages for those who work on Graft speak of what is there: words, files and tests that they name exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "operator", ROOT / "runtime")
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
NAMES = sorted(set(re.findall(r"`(graft_(?:operator|runtime)\.[\w.]+)`", GLOSSARY)))
PAGES = ("docs/extending.md", "docs/architecture.md", "CONTRIBUTING.md", "README.md")


def _is_defined(name: str) -> bool:
    """Tell whether a dotted name is a module, or a class, function or constant at the top of one. Imports nothing."""
    module, _, last = name.rpartition(".")
    for source in SOURCES:
        if (source / f"{name.replace('.', '/')}.py").exists() or (source / name.replace(".", "/")).is_dir():
            return True
        file = source / f"{module.replace('.', '/')}.py"
        if file.exists() and last in _top_names(file):
            return True
    return False


def _top_names(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_word_of_the_glossary_is_in_the_code(name: str) -> None:
    assert _is_defined(name)


def test_a_name_that_is_not_there_is_found_out() -> None:
    assert NAMES
    assert not _is_defined("graft_runtime.model.bank.Ledger")
    assert not _is_defined("graft_runtime.nowhere.Bank")


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"`?(tests/[\w./*]+)", (ROOT / page).read_text()))
    missing = [path for path in named if not list(ROOT.glob(path.rstrip("./")))]
    assert missing == []


def test_the_rooms_that_the_recipes_name_exist() -> None:
    text = (ROOT / "docs/extending.md").read_text()
    named = {
        path
        for path in re.findall(r"`([\w/]+\.py|graft_[\w/]+/?)`", text)
        if "/" in path and not path.startswith("tests/")
    }
    found = {
        path
        for path in named
        for source in (*SOURCES, ROOT / "docs")
        for _ in source.glob(f"**/{path.removeprefix('docs/').strip('/')}")
    }
    assert named - found == set()
