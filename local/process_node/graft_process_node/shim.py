"""The small process that stands between the node agent and one container's process.

It adopts every descendant of the container (child subreaper) and holds the reading end of a pipe from the agent: when
the container ends, or the agent is gone, it kills them all and ends. It also writes the container's log.

Protocol: on stdin one line of JSON (see `Order`), then single bytes: `T` and the number of a signal in one byte sends
that signal to the container's process, `K` kills everything; the end of the pipe means the agent is gone. On stdout one
line of JSON for each of: `{"pid": …}`, `{"error": …}`, `{"exit": …, "signal": …, "output": …}`.

Only the standard library, so that it starts in a few hundredths of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

from graft_process_node.lifeline import adopt_orphans, die_with_parent, end_descendants
from graft_process_node.log_writer import LogWriter, TailKeeper

_CHUNK = 65536


def main() -> None:
    """Run one container, as stdin says."""
    adopt_orphans()
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)  # the agent decides when this ends, by the pipe
    line, rest = _first_line()
    order: dict[str, Any] = json.loads(line)
    sink = LogWriter(order["log"], order["log_bytes"]) if order["log"] else TailKeeper()
    wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pid, streams = _start(order)
    _say({"pid": pid})
    status = _attend(pid, streams, wake_reader, sink, rest)
    end_descendants(os.getpid())
    _drain(streams, sink)
    sink.close()
    _say({"exit": os.waitstatus_to_exitcode(status), "output": sink.tail()})


def _attend(pid: int, streams: dict[int, str], wake: int, sink: TailKeeper, orders: bytes) -> int:
    """Pass on output and orders until the container's process has ended.

    Returns:
        Its wait status.
    """
    poll = select.poll()
    for descriptor in (0, wake, *streams):
        poll.register(descriptor, select.POLLIN)
    _obey(pid, orders)
    while True:
        status = _reaped(pid)
        if status is not None:
            return status
        for descriptor, _ in poll.poll():
            if descriptor == wake:
                _read(wake)
            elif descriptor == 0:
                said = _read(0)
                if not said:  # the agent is gone
                    end_descendants(os.getpid())
                    os._exit(1)
                _obey(pid, said)
            elif not _pass_on(descriptor, streams[descriptor], sink):
                poll.unregister(descriptor)


def _obey(pid: int, orders: bytes) -> None:
    pending = iter(orders)
    for order in pending:
        if order == ord("T"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, next(pending, signal.SIGTERM))
        elif order == ord("K"):
            end_descendants(os.getpid())


def _reaped(pid: int) -> int | None:
    """Bury every child that has ended; the wait status of `pid` if it is among them."""
    found = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if ended == 0:
            return found
        if ended == pid:
            found = status


def _start(order: dict[str, Any]) -> tuple[int, dict[int, str]]:
    out_reader, out_writer = os.pipe2(os.O_CLOEXEC)
    error_reader, error_writer = os.pipe2(os.O_CLOEXEC)
    fault_reader, fault_writer = os.pipe2(os.O_CLOEXEC)
    prepare = die_with_parent()
    pid = os.fork()
    if pid == 0:
        _become_container(order, out_writer, error_writer, fault_writer, prepare)
    for descriptor in (out_writer, error_writer, fault_writer):
        os.close(descriptor)
    fault = os.read(fault_reader, 4096)
    os.close(fault_reader)
    if fault:
        os.waitpid(pid, 0)
        _say({"error": fault.decode(errors="replace")})
        os._exit(0)
    for descriptor in (out_reader, error_reader):
        os.set_blocking(descriptor, False)
    return pid, {out_reader: "stdout", error_reader: "stderr"}


def _become_container(order: dict[str, Any], out: int, error: int, fault: int, prepare: Any) -> NoReturn:
    named = order["directory"]
    try:
        os.setsid()
        prepare()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (out, 1), (error, 2)):
            os.dup2(source, target)
        for default in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGXFSZ):
            signal.signal(default, signal.SIG_DFL)
        os.chdir(named)
        named = order["arguments"][0]
        os.execvpe(named, order["arguments"], order["environment"])  # noqa: S606 - no shell is meant
    except OSError as problem:
        os.write(fault, f"{named}: {problem.strerror}".encode())
    except BaseException as problem:  # nothing but exec or _exit may leave this fork
        os.write(fault, repr(problem).encode())
    os._exit(127)


def _pass_on(descriptor: int, stream: str, sink: TailKeeper) -> bool:
    chunk = _read(descriptor)
    if chunk:
        sink.write(stream, chunk)
    return bool(chunk)


def _drain(streams: dict[int, str], sink: TailKeeper) -> None:
    """What was written before the end; every writer is dead, so this ends."""
    for descriptor, stream in streams.items():
        with contextlib.suppress(BlockingIOError):
            while _pass_on(descriptor, stream, sink):
                pass


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except InterruptedError:
        return os.read(descriptor, _CHUNK)


def _first_line() -> tuple[bytes, bytes]:
    collected = b""
    while b"\n" not in collected:
        chunk = os.read(0, _CHUNK)
        if not chunk:
            sys.exit(1)
        collected += chunk
    line, _, rest = collected.partition(b"\n")
    return line, rest


def _say(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps({**message, "at": time.time()}).encode() + b"\n")
