"""`graft-runtime serve …`: the API process of a pod; it spawns the engine process. `graft-runtime merge …`: files."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from graft_runtime.api.logs import configure_logs
from graft_runtime.api.pod import Places
from graft_runtime.api.server import read_config, serve
from graft_runtime.errors import GraftError

logger = logging.getLogger("graft_runtime")

EXIT_USAGE = 2
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""For both processes: the store alone fetches, and only from declared sources."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Ends the process."""
    options = _parser().parse_args(arguments)
    if options.command == "merge":
        sys.exit(_merge(options))
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
        type=ipaddress.ip_network,
        action="append",
        default=[],
        metavar="CIDR",
        help="a network that hubs may be in although it isn't public, also without TLS; may be repeated",
    )
    return parser


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
