"""The table of methods in docs/reference.md, written from the registry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from graft_runtime.adapters.methods.registry import LORA_OPTIONS, SUPPORT, Support
from graft_runtime.adapters.methods.unserved import UNSERVED

BEGIN, END = "<!-- methods: generated -->\n", "<!-- methods: end -->\n"


def with_table(text: str) -> str:
    """Return a document with the table between its two marks. Raises ValueError when the document lacks a mark."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {BEGIN.strip()} and {END.strip()}")
    return before + begin + "\n" + "\n".join(_lines()) + "\n\n" + end + after


def _lines() -> Iterator[str]:
    columns = [field.name for field in fields(Support)]
    yield f"| method | {' | '.join(columns)} |"
    yield "|---|" + "---|" * len(columns)
    for method, support in SUPPORT.items():
        if support.served:
            yield _row(f"`{method}`", support)
        if method == "LORA":
            for option, part in LORA_OPTIONS.items():
                yield _row(f"`LORA` with {option}", part)
    yield ""
    yield "| not served | what to do instead |"
    yield "|---|---|"
    for method, instead in sorted(UNSERVED.items()):
        yield f"| `{method}` | {instead} |"


def _row(name: str, support: Support) -> str:
    values = ("yes" if getattr(support, field.name) else "no" for field in fields(Support))
    return f"| {name} | {' | '.join(values)} |"


def main(path: Path) -> None:
    """Write the table into this document."""
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
