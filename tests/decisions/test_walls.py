"""The walls of the house hold: import-linter's contracts, and what each program pulls in when it starts cold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import rooms

ROOT = Path(__file__).parents[2]

API_PROCESS = [
    "graft_runtime.commands.serve",
    "graft_runtime.http",
    "graft_runtime.answering",
    "graft_runtime.pod",
    "graft_runtime.tokenizing",
    "graft_runtime.store",
    "graft_runtime.adapters.files",
]
INSPECTION = ["graft_runtime.__main__", "graft_runtime.commands.inspect"]


def test_imports_stay_inside_their_walls() -> None:
    # A process of its own: import-linter sets up logging for the whole process, and turns off the loggers it finds.
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout


def _modules_after(statement: str) -> set[str]:
    script = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(ended.stdout.split())


def _import_all(package: str, *, but: tuple[str, ...] = ()) -> str:
    return (
        "import importlib, pkgutil\n"
        f"import {package} as package\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        f"    if not module.name.startswith({but!r}): importlib.import_module(module.name)"
    )


def test_the_operator_starts_without_the_runtime_s_world() -> None:
    loaded = _modules_after(_import_all("graft_operator"))
    assert "kopf" in loaded
    assert not loaded & {"torch", "transformers", "fastapi", "peft", "graft_local"}
    seen = {".".join(name.split(".")[:2]) for name in loaded if name.startswith("graft_runtime")}
    assert seen == {"graft_runtime", *(f"graft_runtime.{room}" for room in ("backoff", "contract", "errors", "logs"))}


def test_the_api_process_starts_without_torch_and_kubernetes() -> None:
    loaded = _modules_after("\n".join(f"import {module}" for module in API_PROCESS))
    assert not loaded & {"torch", "kopf", "kubernetes", "peft", "graft_operator", "graft_local"}


def test_an_adapter_is_looked_into_without_what_loads_models_and_serves() -> None:
    loaded = _modules_after("\n".join(f"import {module}" for module in INSPECTION))
    assert not loaded & {
        "torch",
        "transformers",
        "tokenizers",
        "fastapi",
        "uvicorn",
        "huggingface_hub",
        "jwt",
        "httpx2",
    }


def test_the_contract_costs_pydantic_and_nothing_else() -> None:
    loaded = _modules_after(_import_all("graft_runtime.contract"))
    assert "pydantic" in loaded
    assert not loaded & {"msgspec", "fastapi", "torch", "transformers", "jwt"}


def test_one_module_alone_finds_modules_of_a_model_by_their_path() -> None:
    files = (ROOT / "runtime/graft_runtime").rglob("*.py")
    finders = [file.name for file in files if "get_submodule(" in file.read_text()]
    assert finders == ["modules.py"], "ask BaseModules instead"


def test_the_page_draws_the_rooms_as_they_are() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    assert rooms.inserted(page) == page, "run `make generate`"


@pytest.mark.parametrize("program", rooms.PROGRAMS)
def test_every_room_stands_in_the_layers_and_on_the_page(program: str) -> None:
    layered = {room for layer in rooms.layers_of(program) for room in layer}
    assert layered == set(rooms.imports_of(program))
    page = (ROOT / "docs/architecture.md").read_text().split(rooms.BEGIN)[0]
    explained = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert layered <= explained


def test_an_arrow_is_drawn_only_where_no_longer_way_leads() -> None:
    imports: dict[str, set[str]] = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert rooms.without_detours(imports) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_no_module_shadows_the_standard_library() -> None:
    stray = [path for root in ("operator", "runtime", "local") for path in (ROOT / root).glob("*.py")]
    assert stray == []


def test_no_file_of_tests_imports_another() -> None:
    another = re.compile(r"^\s*(from|import) tests\.\S*\btest_\w+|^\s*from tests\S* import test_", re.M)
    assert [path.name for path in (ROOT / "tests").rglob("*.py") if another.search(path.read_text())] == []


def test_a_module_of_more_than_300_lines_says_why() -> None:
    files = [path for root in ("operator", "runtime", "local") for path in (ROOT / root).rglob("*.py")]
    texts = {path: path.read_text() for path in files}
    long = {path for path, text in texts.items() if len(text.splitlines()) > 300}
    explained = {path for path in long if "300 lines" in (ast.get_docstring(ast.parse(texts[path])) or "")}
    assert long - explained == set()
