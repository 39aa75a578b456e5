"""Starts the processes that do what strangers' files, forms and bodies ask for, each within milliseconds.

`python -m graft_runtime.tokenizing.spawner SOCKET MODULE…` has imported what they need; each of them is a fork of it.
It has no thread beside its first, so a fork of it is whole.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from graft_runtime.one_shot import bound_memory
from graft_runtime.tokenizing.frames import read_frame, write_frame

SHARE_OF_FREE = 1 / 8
"""That each may have of what is free: several are greedy at a time."""
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""So that nothing starts threads."""


class Spawner:
    """The process that the others are forks of. Started when it is first needed, and again where it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._modules: list[str] = []

    def prepare(self, module: str) -> None:
        """Have the process import a module before it forks: `answerer()` of it returns what answers a question."""
        if module not in self._modules:
            self._modules.append(module)

    @property
    def process_id(self) -> int | None:
        """Return the id of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, if there is none, so that the first question does not wait for what it imports."""
        with self._lock:
            self._started()

    def spawn(self, module: str, memory_bytes: int) -> socket.socket:
        """Have a process started that answers a module's questions.

        Args:
            module: one that it was prepared for.
            memory_bytes: that the process may have of its own.

        Returns:
            What to talk to it through; its first frame is its process id. Closed, it ends.
        """
        ours, its = socket.socketpair()
        order = f"{module} {memory_bytes}".encode()
        with its, self._lock, contextlib.ExitStack() as held:
            held.callback(ours.close)
            try:
                socket.send_fds(self._started(), [order], [its.fileno()])
            except OSError:
                self._ended()
                socket.send_fds(self._started(), [order], [its.fileno()])
            held.pop_all()
        return ours

    def close(self) -> None:
        """End the process; the next that is to be started starts another."""
        with self._lock:
            self._ended()

    def _started(self) -> socket.socket:
        if self._process is None or self._process.poll() is not None or self._control is None:
            self._ended()
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with its:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(its.fileno()), *self._modules],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[its.fileno()],
                    env=os.environ | _ENVIRONMENT,
                )
            self._control = ours
        return self._control

    def _ended(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._control = None


spawner = Spawner()
"""Of the whole process."""
atexit.register(spawner.close)


def _serve(control: socket.socket, modules: Sequence[str]) -> None:
    """Fork a process for each order: this is the spawner's process."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    answerers = {module: _answerer(module) for module in modules}
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, 256, 1)
        if not descriptors:
            return
        with socket.socket(fileno=descriptors[0]) as asker:
            if os.fork() == 0:
                control.close()
                module, memory_bytes = order.decode().split()
                _answer(asker, answerers.get(module) or _answerer(module), int(memory_bytes))


def _answerer(module: str) -> Callable[[bytes], bytes]:
    found: Callable[[bytes], bytes] = importlib.import_module(module).answerer()
    return found


def _answer(asker: socket.socket, answered: Callable[[bytes], bytes], memory_bytes: int) -> None:
    """Answer questions until there are no more, and end: this is a fork."""
    try:
        bound_memory(os.getpid(), memory_bytes, SHARE_OF_FREE)
        write_frame(asker, str(os.getpid()).encode())
        while True:
            write_frame(asker, answered(read_frame(asker)))
    except (EOFError, OSError):
        os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
