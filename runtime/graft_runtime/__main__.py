"""The console script: `serve` is the API process of a pod, which spawns the engine process; `convert`,
`merge` and `inspect` are for files. Each command loads what it needs, and no more.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

COMMANDS = {
    "merge": "write a checkpoint with adapters folded into their base",
    "convert": "write plain LoRA that does what an adapter of another method does",
    "inspect": "tell what an adapter is, and why it would be refused",
    "serve": "serve a pool's pod",
}
"""Modules of `commands`, with `add_arguments` and `run`, and what they do."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the console script, and end the process."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="graft-runtime")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    parsers = {name: commands.add_parser(name, help=text) for name, text in COMMANDS.items()}
    named = next((word for word in words if word in COMMANDS), None)
    if named is None:
        parser.parse_args(words)  # ends the process: it helps, or tells what is wrong
        return
    if named == "serve":
        _end_on_sigterm()
    command = importlib.import_module(f"graft_runtime.commands.{named}")
    command.add_arguments(parsers[named])
    sys.exit(command.run(parser.parse_args(words)))


def _end_on_sigterm() -> None:
    """End the process on SIGTERM while it still imports: the kernel spares process 1 from signals without a handler."""
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


if __name__ == "__main__":
    main()
