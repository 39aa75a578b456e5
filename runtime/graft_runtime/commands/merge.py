"""`graft-runtime merge`: a checkpoint with adapters folded into their base."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from graft_runtime.commands.weighted_adapters import add_weighted_adapters
from graft_runtime.errors import GraftError

EXIT_REFUSED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="a checkpoint in safetensors")
    add_weighted_adapters(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new, or left by an interrupted run of the same"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command, and return the exit status."""
    from graft_runtime.merge.files import AdapterPath, merge_files  # noqa: PLC0415 - torch, which help can do without

    def tell(line: str) -> None:
        sys.stderr.write(line + "\n")

    try:
        adapters = [AdapterPath(directory, weight) for directory, weight in options.adapter]
        merge_files(options.base.resolve(), adapters, options.output, tell=tell)
    except (GraftError, OSError) as error:
        tell(str(error))
        return EXIT_REFUSED
    return 0
