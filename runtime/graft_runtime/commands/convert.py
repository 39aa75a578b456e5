"""`graft-runtime convert`: plain LoRA that does what an adapter does, for engines that know no other method."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from graft_runtime.commands.base_task import add_base_task
from graft_runtime.commands.weighted_adapters import add_weighted_adapters
from graft_runtime.errors import ErrorCode, GraftError

EXIT_REFUSED = 2
DEFAULT_MAX_RANK = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="a checkpoint in safetensors")
    add_base_task(parser)
    add_weighted_adapters(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new or empty directory")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the tensors that are written, rounded once (default: float32)",
    )
    parser.add_argument(
        "--max-rank",
        type=int,
        default=DEFAULT_MAX_RANK,
        metavar="N",
        help=f"the highest rank that the engine takes (default: {DEFAULT_MAX_RANK})",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command, and return the exit status."""
    try:
        _convert(options)
    except (GraftError, OSError) as error:
        _tell(str(error))
        return EXIT_REFUSED
    return 0


def _convert(options: argparse.Namespace) -> None:
    from graft_runtime.adapters.files import read_adapter_files  # noqa: PLC0415 - help can do without torch
    from graft_runtime.compiler.conversion import write_normal_form  # noqa: PLC0415
    from graft_runtime.inspection import HIGHEST_RANK  # noqa: PLC0415

    output: Path = options.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"`{output}` is there already and not empty",
            hint="name another directory for the output, or remove that one",
        )
    adapters = [
        (read_adapter_files(directory, name=directory.name, max_rank=HIGHEST_RANK), weight)
        for directory, weight in options.adapter
    ]
    form = write_normal_form(
        adapters, options.base, output, task=options.task, dtype=options.dtype, max_rank=options.max_rank
    )
    for (files, _), facts in zip(adapters, form.facts, strict=True):
        if facts.remapped:
            _tell(f"adapter `{files.name}` names its modules otherwise than its base: {facts.remapped}")
        if facts.unused:
            _tell(f"adapter `{files.name}` is converted in part: {facts.unused}")
    _tell(f"{output} is plain LoRA of rank {form.rank} on {len(form.modules)} modules")


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
