"""The console script: `serve` is the API process of a pod, which spawns the engine process; `merge` and `inspect` are
for files.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from graft_runtime.api.logs import configure_logs
from graft_runtime.api.pod import Places
from graft_runtime.api.server import read_config, serve
from graft_runtime.contract import Fault
from graft_runtime.errors import GraftError
from graft_runtime.inspection import HIGHEST_RANK, for_people, inspect_adapter
from graft_runtime.store.network import parse_network

logger = logging.getLogger("graft_runtime")

EXIT_REFUSED = 1
EXIT_USAGE = 2
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""For both processes: the store alone fetches, and only from declared sources."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Ends the process."""
    options = _parser().parse_args(arguments)
    if options.command == "merge":
        sys.exit(_merge(options))
    if options.command == "inspect":
        sys.exit(_inspect(options))
    _serve(options)


def _merge(options: argparse.Namespace) -> int:
    from graft_runtime.merge.files import AdapterPath, merge_files  # noqa: PLC0415 - `serve` holds no torch

    def tell(line: str) -> None:
        sys.stderr.write(line + "\n")

    try:
        adapters = [AdapterPath(directory, weight) for directory, weight in options.adapter]
        merge_files(options.base.resolve(), adapters, options.output, tell=tell)
    except (GraftError, OSError) as error:
        tell(str(error))
        return EXIT_USAGE
    return 0


def _inspect(options: argparse.Namespace) -> int:
    directory, name = options.directory.resolve(), options.directory.resolve().name
    found = inspect_adapter(directory, name=name, max_rank=options.max_rank)
    if options.base is not None and found.fault is None:
        from graft_runtime.model.stored import check_fit  # noqa: PLC0415 - it needs torch

        try:
            check_fit(directory, options.base.resolve(), name=name, max_rank=options.max_rank)
        except GraftError as error:
            found = found.model_copy(update={"fault": Fault.of(error)})
    text = found.model_dump_json(by_alias=True, indent=2) if options.output == "json" else for_people(found, name)
    sys.stdout.write(text + "\n")
    return EXIT_REFUSED if found.fault is not None else 0


def _serve(options: argparse.Namespace) -> None:
    configure_logs()
    os.environ.update(_OFFLINE)
    sources = {name: Path(directory) for name, directory in options.source_mount}
    places = Places(
        adapter_set=options.adapter_set_directory,
        keys=options.keys_directory,
        cache=options.cache_directory,
        state=options.state_directory,
        sources=sources,
        allowed_networks=tuple(options.allowed_network),
    )
    try:
        status = asyncio.run(
            serve(read_config(options.config_directory), places, options.pod_uid, options.bind_address)
        )
    except (GraftError, OSError) as error:
        logger.critical("%s", error)
        status = EXIT_USAGE
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)  # a thread may still copy from a source that hangs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="graft-runtime")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_merge(commands.add_parser("merge", help="write a checkpoint with adapters folded into their base"))
    _add_inspect(commands.add_parser("inspect", help="tell what an adapter is, and why it would be refused"))
    serving = commands.add_parser("serve", help="serve a pool's pod")
    for name, text in (
        ("config", "the pod's RuntimeConfig"),
        ("adapter-set", "the adapter set, where there is one"),
        ("keys", "public keys of the operator"),
        ("cache", "checkpoints, by digest; of this pod alone"),
        ("state", "what must outlive a restart of the container"),
    ):
        serving.add_argument(f"--{name}-directory", type=Path, required=True, metavar="DIRECTORY", help=text)
    serving.add_argument("--bind-address", default="0.0.0.0", help="for both ports")  # noqa: S104 - a pod's default
    serving.add_argument("--pod-uid", required=True, help="the audience of control tokens")
    serving.add_argument(
        "--source-mount",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "DIRECTORY"),
        help="where a declared source is mounted; may be repeated",
    )
    serving.add_argument(
        "--allowed-network",
        type=parse_network,
        action="append",
        default=[],
        metavar="CIDR",
        help="where sources may be, beside public addresses; may be repeated",
    )
    return parser


def _add_inspect(inspecting: argparse.ArgumentParser) -> None:
    inspecting.add_argument("directory", type=Path, metavar="DIR", help="an adapter as PEFT saves it")
    inspecting.add_argument("--base", type=Path, metavar="DIR", help="a checkpoint that it ought to fit")
    inspecting.add_argument("--max-rank", type=int, default=HIGHEST_RANK, metavar="N", help="of a pool")
    inspecting.add_argument("--output", choices=("text", "json"), default="text", help="for people or for programs")


def _add_merge(merging: argparse.ArgumentParser) -> None:
    merging.add_argument("--base", type=Path, required=True, metavar="DIR", help="a checkpoint in safetensors")
    merging.add_argument(
        "--adapter",
        type=_adapter,
        action="append",
        required=True,
        metavar="DIR[=WEIGHT]",
        help="an adapter as PEFT saves it, and how much of it (default 1); may be repeated",
    )
    merging.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new, or left by an interrupted run of the same"
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


if __name__ == "__main__":
    main()
