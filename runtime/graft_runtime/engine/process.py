"""The engine process: a reader thread, the step loop in the main thread, a loader thread. Ends with its parent."""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

import torch

from graft_runtime.engine.engine import Engine, EngineBrokenError
from graft_runtime.engine.loader import LoaderThreads, Outcome
from graft_runtime.memory import give_back_what_is_free
from graft_runtime.messages import FRAME_HEADER_BYTES, MAX_FRAME_BYTES, Command, decode_command, encode_events

logger = logging.getLogger(__name__)

EXIT_PARENT_GONE = 0
EXIT_BROKEN = 1
EXIT_BAD_MESSAGE = 2

CALM_SECONDS = 0.5
"""So long nothing came: what was freed is given back then, which would hold up a step."""

Inbox = queue.SimpleQueue[Command | Outcome]


def serve(connection: socket.socket) -> NoReturn:
    """Serve the API process at the other end until that process goes."""
    _use_granted_processors()
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection.makefile("rb"), inbox), name="reader", daemon=True).start()
    try:
        run(Engine(LoaderThreads(inbox.put).submit), inbox, connection.sendall)
    except EngineBrokenError as error:
        logger.critical("%s; the engine process exits", error, exc_info=error)
        _exit(EXIT_BROKEN)
    except OSError:  # the other end is gone
        _exit(EXIT_PARENT_GONE)
    except BaseException:
        logger.critical("the engine process exits", exc_info=True)
        _exit(EXIT_BROKEN)
    raise AssertionError


def run(engine: Engine, inbox: Inbox, send: Callable[[bytes], None]) -> NoReturn:
    """Run the step loop: handle everything that came, then do a step; sleep only while there is nothing to do."""
    while True:
        if not engine.busy:
            engine.handle(_wait(inbox))
        while not inbox.empty():
            engine.handle(inbox.get())
        if events := engine.step():
            send(encode_events(events))


def _wait(inbox: Inbox) -> Command | Outcome:
    """Return what comes next."""
    try:
        return inbox.get(timeout=CALM_SECONDS)
    except queue.Empty:
        give_back_what_is_free()
        return inbox.get()


def _read(stream: BinaryIO, inbox: Inbox) -> None:
    while header := stream.read(FRAME_HEADER_BYTES):
        length = int.from_bytes(header, "big")
        body = stream.read(length) if length <= MAX_FRAME_BYTES else b""
        try:
            inbox.put(decode_command(body))
        except ValueError as error:  # msgspec's errors are ValueErrors
            logger.critical("a message of the API process can't be read: %s", error)
            _exit(EXIT_BAD_MESSAGE)
    _exit(EXIT_PARENT_GONE)


def _use_granted_processors() -> None:
    """Use as many threads as the container may use processors; torch counts the processors of the machine."""
    if "OMP_NUM_THREADS" not in os.environ:
        granted = granted_processors(Path("/sys/fs/cgroup"), len(os.sched_getaffinity(0)))
        torch.set_num_threads(min(granted, torch.get_num_threads()))


def granted_processors(cgroup: Path, affinity: int) -> int:
    """Return how many processors a container's quota and the affinity leave, at least one.

    Args:
        cgroup: where the container's cgroup is mounted, of version 2 or 1. A quota is microseconds of processor time a
            period; `max` or -1 is none.
        affinity: processors that the process may run on.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        return affinity if quota in ("max", "-1") else max(1, min(affinity, int(quota) // int(period)))
    return affinity


def _exit(status: int) -> NoReturn:
    """End the process at once: a step or a load may hold the other threads for minutes."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)
