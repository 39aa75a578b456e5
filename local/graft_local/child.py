"""A command that ends with us, and tells on its standard error how far it is."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from graft_process_node.lifeline import die_with_parent

_LINES_KEPT = 30


def run_child(
    command: Sequence[str | os.PathLike[str]],
    hear: Callable[[int, str], None],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    output: IO[str] | int = subprocess.DEVNULL,
) -> tuple[int, str]:
    """Run a command; `hear` gets the number and the text of each line of its standard error.

    Returns:
        Its exit status, and the last of these lines, indented.
    """
    last_lines: deque[str] = deque(maxlen=_LINES_KEPT)
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(),  # noqa: PLW1509 - it calls the kernel, nothing else
    ) as child:
        assert child.stderr is not None
        for count, line in enumerate(child.stderr, start=1):
            last_lines.append(line.rstrip())
            hear(count, line.strip())
    return child.returncode, "\n".join(f"  {line}" for line in last_lines)
