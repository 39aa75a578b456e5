"""`graft-runtime inspect`: what an adapter is, and why it would be refused."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from graft_runtime.adapters.files import AdapterFiles
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.base.kept_layouts import layout_of_checkpoint
from graft_runtime.base.quantised_files import config_of, saved_quantization
from graft_runtime.commands.base_task import add_base_task
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.errors import GraftError
from graft_runtime.inspection import HIGHEST_RANK, StoredBase, for_people, inspect_adapter

EXIT_REFUSED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="an adapter as PEFT saves it")
    parser.add_argument("--base", type=Path, metavar="DIR", help="a checkpoint that it ought to fit")
    add_base_task(parser)
    parser.add_argument("--max-rank", type=int, default=HIGHEST_RANK, metavar="N", help="of a pool")
    parser.add_argument(
        "--values",
        action="store_true",
        help="with --base: check as well that its values are finite and change the base, which takes seconds",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the base's weights, for --values (default: float32)",
    )
    parser.add_argument("--name", help="how errors call the adapter (default: the name of the directory)")
    parser.add_argument("--output", choices=("text", "json"), default="text", help="for people or for programs")


def run(options: argparse.Namespace) -> int:
    """Run the command, and return the exit status."""
    directory = options.directory.resolve()
    name = options.name or directory.name
    base = _stored(options) if options.base is not None else None
    inspection = inspect_adapter(directory, name=name, max_rank=options.max_rank, base=base)
    text = (
        inspection.model_dump_json(by_alias=True, indent=2)
        if options.output == "json"
        else for_people(inspection, name)
    )
    sys.stdout.write(text + "\n")
    return EXIT_REFUSED if inspection.fault is not None else 0


def _stored(options: argparse.Namespace) -> StoredBase:
    directory, task = options.base.resolve(), options.task

    def make() -> BaseLayout:
        from graft_runtime.model.stored import stored_layout  # noqa: PLC0415 - it needs torch

        return stored_layout(directory, name=directory.name, task=task)

    def compiled(files: AdapterFiles) -> AdapterFacts:
        import torch  # noqa: PLC0415 - the rest of the command does without

        from graft_runtime.compiler.stored_modules import StoredModules  # noqa: PLC0415 - it needs torch

        return StoredModules(directory, task).compiled(files, getattr(torch, options.dtype)).facts

    layout = partial(layout_of_checkpoint, directory, task, make)
    return StoredBase(directory, layout, compiled if options.values and _is_full(directory) else None)


def _is_full(directory: Path) -> bool:
    """Tell whether the files hold full weights, which values can be checked beside."""
    try:
        return saved_quantization(config_of(directory, directory.name), directory.name) is None
    except GraftError:
        return True  # the layout will say so
