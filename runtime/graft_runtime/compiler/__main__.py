"""`python -m graft_runtime.compiler`: one adapter's normal form for a pod, which gets Mounted or MountFailed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from graft_runtime.adapters.files import WEIGHTS_FILE, read_adapter_files
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import EngineFault, Mounted, MountFailed, encode_events


def main() -> None:
    """Write the normal form, and the one event to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m graft_runtime.compiler")
    for name in ("base", "adapter", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("name", "digest", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--task", type=Task)
    parser.add_argument("--max-rank", type=int, required=True)
    options = parser.parse_args()
    sys.stdout.buffer.write(encode_events([_converted(options)]))


def _converted(options: argparse.Namespace) -> Mounted | MountFailed:
    try:
        return _convert(options)
    except GraftError as error:
        return MountFailed(options.digest, EngineFault.of(error))
    except OSError as error:
        fault = GraftError(ErrorCode.NO_CAPACITY, f"the normal form of adapter `{options.name}`: {error}")
        return MountFailed(options.digest, EngineFault.of(fault))


def _convert(options: argparse.Namespace) -> Mounted:
    from graft_runtime.compiler.conversion import write_normal_form  # noqa: PLC0415 - torch comes with it

    files = read_adapter_files(options.adapter, name=options.name, max_rank=options.max_rank)
    form = write_normal_form(
        [(files, 1.0)],
        options.base,
        options.output,
        task=options.task,
        dtype=options.dtype,
        max_rank=options.max_rank,
    )
    return Mounted(options.digest, form.facts[0], (options.output / WEIGHTS_FILE).stat().st_size)


if __name__ == "__main__":
    main()
