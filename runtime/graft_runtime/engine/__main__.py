"""`python -m graft_runtime.engine --socket-fd N`: the engine process, up to the import of torch."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import socket
import sys
from typing import NoReturn

from graft_runtime.engine.room import check_room_for_engine, refuse
from graft_runtime.errors import GraftError
from graft_runtime.logs import configure_logs

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Serve the API process at the other end of `--socket-fd` until that process goes."""
    parser = argparse.ArgumentParser(prog="python -m graft_runtime.engine")
    parser.add_argument("--socket-fd", type=int, required=True, help="one end of a socket pair")
    arguments = parser.parse_args()
    configure_logs()
    _end_with_parent()
    connection = socket.socket(fileno=arguments.socket_fd)
    try:
        check_room_for_engine()
    except GraftError as error:
        logger.critical("%s", error)
        refuse(connection, error)
        sys.exit()
    _set_up_torch()
    from graft_runtime.engine.process import serve  # noqa: PLC0415 - torch comes with it

    serve(connection)


def _end_with_parent() -> None:
    """Let the engine process die with the parent's thread that spawned it, however that thread ends.

    The API process alone decides when to drain.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _set_up_torch() -> None:
    """Say in the environment, where torch looks when it is imported, what it does with threads and memory."""
    # Threads that wait for work must not spin on cores that the API process or neighbours need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Keys and values come in many sizes: in segments that grow, what one size gave back is of use for the next.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


if __name__ == "__main__":
    main()
