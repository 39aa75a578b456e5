"""The option `--adapter DIR[=WEIGHT]` of commands that take adapters with weights."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def add_weighted_adapters(parser: argparse.ArgumentParser) -> None:
    """Describe the option; its values are pairs of a directory and a weight."""
    parser.add_argument(
        "--adapter",
        type=_adapter,
        action="append",
        required=True,
        metavar="DIR[=WEIGHT]",
        help="an adapter as PEFT saves it, and how much of it (default 1); may be repeated",
    )


def _adapter(text: str) -> tuple[Path, float]:
    directory, equals, weight = text.rpartition("=")
    try:
        number = float(weight) if equals else 1.0
    except ValueError:
        directory, number = text, 1.0  # the `=` is part of the path
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"the weight {weight} of {directory} is not a finite number")
    return Path(directory if equals else text).resolve(), number
