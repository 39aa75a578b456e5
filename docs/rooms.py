"""Draw the rooms of both programs into docs/architecture.md, from the imports as they are.

`python docs/rooms.py docs/architecture.md` rewrites what stands between the two marks, and `make generate` runs it. The
order of the rooms is that of the layers contracts in pyproject.toml, the arrows are what import-linter sees.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- rooms: written by docs/rooms.py -->", "<!-- end of rooms -->"
PROGRAMS = ("graft_operator", "graft_runtime")


def layers_of(program: str) -> list[list[str]]:
    """Return the rooms of a program from the top layer to the lowest, as its layers contract lists them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == [program])
    return [re.findall(r"\w+", layer) for layer in layers]


def imports_of(program: str) -> dict[str, set[str]]:
    """Return for each room of a program the other rooms of it that the room imports."""
    graph = grimp.build_graph(program, exclude_type_checking_imports=True, cache_dir=None)
    rooms = graph.find_children(program)
    return {
        _name(room): {
            _name(other)
            for other in rooms - {room}
            if graph.direct_import_exists(importer=room, imported=other, as_packages=True)
        }
        for room in rooms
    }


def without_detours(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports less those that a longer way stands for as well: the transitive reduction."""
    reached = {room: _reached(imports, others) for room, others in imports.items()}
    return {
        room: {other for other in others if not any(other in reached[between] for between in others - {other})}
        for room, others in imports.items()
    }


def drawn() -> str:
    """Return the picture of both programs (Mermaid), and the table of what each room imports (Markdown)."""
    return "\n\n".join(_picture(program) + "\n\n" + _table(program) for program in PROGRAMS)


def inserted(text: str) -> str:
    """Return the text of the page with the picture between its marks."""
    before, (_, after) = text.split(BEGIN, 1)[0], text.split(END, 1)
    return f"{before}{BEGIN}\n\n{drawn()}\n\n{END}{after}"


def _reached(imports: dict[str, set[str]], rooms: set[str]) -> set[str]:
    return set().union(*({room} | _reached(imports, imports[room]) for room in rooms))


def _picture(program: str) -> str:
    kept = without_detours(imports_of(program))
    rooms = [room for layer in layers_of(program) for room in layer]
    arrows = [f"  {room} --> {other}" for room in rooms for other in rooms if other in kept[room]]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```"])


def _table(program: str) -> str:
    imports = imports_of(program)
    rooms = [room for layer in layers_of(program) for room in layer]
    rows = [f"| `{room}` | {', '.join(other for other in rooms if other in imports[room]) or '-'} |" for room in rooms]
    return "\n".join([f"| `{program}` | imports |", "|---|---|", *rows])


def _name(module: str) -> str:
    return module.rsplit(".", 1)[1]


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(inserted(page.read_text()))
