"""What is no longer needed is given back, by the C library and by Python."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from graft_runtime.memory import collect_what_comes_alone, give_back_what_is_free

PIECE, PIECES = 4000, 16_000


@pytest.fixture
def collecting() -> Iterator[None]:
    collect_what_comes_alone()
    yield
    gc.unfreeze()


class Node:
    """Holds itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.mark.usefixtures("collecting")
def test_what_holds_itself_is_collected_however_much_was_there_before() -> None:
    node = Node()
    gone = weakref.ref(node)
    gc.collect(1)  # it has been there for a while
    del node
    kept: list[list[int]] = [[] for _ in range(100_000)]
    assert (gone(), len(kept)) == (None, 100_000)


def resident() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))


def test_what_is_free_between_pieces_in_use_is_given_back() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    pieces = [library.malloc(PIECE) for _ in range(PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    for piece in pieces[:-1]:  # the last one is in use, so the end of the heap stays where it is
        library.free(piece)
    before = resident()
    give_back_what_is_free()
    after = resident()
    library.free(pieces[-1])
    assert before - after > PIECE * PIECES / 2
