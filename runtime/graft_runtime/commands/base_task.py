"""The option `--task` of commands that read a base."""

from __future__ import annotations

import argparse

from graft_runtime.contract.tasks import Task


def add_base_task(parser: argparse.ArgumentParser) -> None:
    """Describe the option; its value is a Task, or None."""
    parser.add_argument(
        "--task",
        type=Task,
        choices=list(Task),
        metavar="TASK",
        help=f"what the base is loaded for: {', '.join(Task)} (default: what its config.json says)",
    )
