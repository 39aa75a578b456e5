"""`graft-runtime serve`: the API process of a pod."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from graft_runtime.contract.config import RuntimeConfig
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.server import read_config, serve
from graft_runtime.logs import configure_logs
from graft_runtime.memory import give_back_what_is_freed
from graft_runtime.pod.engine_child import EngineChild
from graft_runtime.pod.engine_port import EnginePort
from graft_runtime.pod.engine_socket import EngineSocket
from graft_runtime.pod.normal_forms import NormalForms
from graft_runtime.pod.pod import Places
from graft_runtime.store.network import parse_network

logger = logging.getLogger("graft_runtime")

EXIT_USAGE = 2
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""For both processes: the store alone fetches, and only from declared sources."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    for name, text in (
        ("config", "the pod's RuntimeConfig"),
        ("adapter-set", "the adapter set, where there is one"),
        ("keys", "public keys of the operator"),
        ("cache", "what this pod alone keeps: checkpoints, by digest, unless they are shared"),
        ("state", "what must outlive a restart of the container"),
    ):
        parser.add_argument(f"--{name}-directory", type=Path, required=True, metavar="DIRECTORY", help=text)
    parser.add_argument(
        "--api-keys-directory",
        type=Path,
        metavar="DIRECTORY",
        help="the Secret with the API's keys; without, it asks none",
    )
    parser.add_argument(
        "--shared-cache-directory",
        type=Path,
        metavar="DIRECTORY",
        help="checkpoints, by digest, of several pods; without, each has its own",
    )
    parser.add_argument("--bind-address", default="0.0.0.0", help="for all ports")  # noqa: S104 - a pod's default
    parser.add_argument("--pod-uid", required=True, help="the audience of control tokens")
    parser.add_argument(
        "--source-mount",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "DIRECTORY"),
        help="where a declared source is mounted; may be repeated",
    )
    for name, text in (("cache", "the cache"), ("adapter", "the files of one adapter")):
        parser.add_argument(
            f"--{name}-bytes", type=int, metavar="BYTES", help=f"the most that {text} may have, unless the config says"
        )
    parser.add_argument(
        "--allowed-network",
        type=parse_network,
        action="append",
        default=[],
        metavar="CIDR",
        help="where sources may be, beside public addresses; may be repeated",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="HOST",
        help="which hosts may be asked, such as hub.example or *.hub.example; any without it; may be repeated",
    )
    parser.add_argument("--no-page", dest="page", action="store_false", help="have no page for people at /")
    parser.add_argument(
        "--engine-socket",
        type=Path,
        metavar="PATH",
        help="where an engine in another container listens; without, the pod starts Graft's own",
    )


def _engine(options: argparse.Namespace, config: RuntimeConfig) -> Callable[[], EnginePort]:
    """Return what makes the engine that the options name. Raises GraftError: it can't serve such a base."""
    path: Path | None = options.engine_socket
    if path is None:
        return EngineChild
    if config.base_model.in_place:
        raise GraftError(
            ErrorCode.INVALID_SPEC,
            "spec.baseModel.inPlace is set, and an engine in another container can't open what this process holds open",
            hint="leave spec.baseModel.inPlace out",
        )
    return lambda: NormalForms(EngineSocket(path), options.cache_directory / "normal-forms")


def run(options: argparse.Namespace, engine: Callable[[], EnginePort] | None = None) -> NoReturn:
    """Serve until the process is told to end, and end it.

    Args:
        options: of the command line.
        engine: makes another engine than the options name, inside of the event loop.
    """
    give_back_what_is_freed()
    configure_logs(quiet=["uvicorn"])
    os.environ.update(_OFFLINE)
    sources = {name: Path(directory) for name, directory in options.source_mount}
    places = Places(
        adapter_set=options.adapter_set_directory,
        keys=options.keys_directory,
        cache=options.cache_directory,
        state=options.state_directory,
        sources=sources,
        allowed_networks=tuple(options.allowed_network),
        api_keys=options.api_keys_directory,
        shared_cache=options.shared_cache_directory,
        cache_bytes=options.cache_bytes,
        adapter_bytes=options.adapter_bytes,
        allowed_hosts=tuple(options.allowed_host),
        page=options.page,
    )
    try:
        config = read_config(options.config_directory)
        engine = engine or _engine(options, config)
        status = asyncio.run(serve(config, places, options.pod_uid, options.bind_address, engine))
    except (GraftError, OSError) as error:
        logger.critical("%s", error)
        status = EXIT_USAGE
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)  # a thread may still copy from a source that hangs
