"""A deadline for a stranger's Python code, such as a compiled chat template, in a thread of ours."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator


class TookTooLongError(Exception):
    """Raised inside the code whose time is over."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End the block after so many seconds by an exception between two of its bytecodes.

    A single call into C is not cut short.

    Raises:
        TookTooLongError
    """
    thread, lock, ended = threading.get_ident(), threading.Lock(), False

    def expire() -> None:
        with lock:
            if not ended:
                error = ctypes.py_object(TookTooLongError)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    except TookTooLongError:
        raise TookTooLongError(f"it took more than {seconds:g} s") from None
    finally:
        with lock:
            ended = True
        timer.cancel()
