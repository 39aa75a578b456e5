"""Whether there is memory for the engine process itself: asked before torch is imported, which alone takes much."""

from __future__ import annotations

import socket

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.memory import free_memory
from graft_runtime.messages import FRAME_HEADER_BYTES, BaseFailed, EngineFault, Start, decode_command, encode_events

ENGINE_MEBIBYTES = 450
"""What the process has in memory of its own before it loads a model: Python, PyTorch with CUDA, Transformers, an empty
step loop."""


def check_room_for_engine(free: int | None = None) -> None:
    """Check that the engine process can start at all.

    Args:
        free: bytes that it may take; None: as the machine and the container say.

    Raises:
        GraftError: NoCapacity.
    """
    has = (free_memory() if free is None else free) >> 20
    if has < ENGINE_MEBIBYTES:
        raise GraftError(
            ErrorCode.NO_CAPACITY,
            f"the engine needs {ENGINE_MEBIBYTES} MiB before it loads a model; {has} MiB of memory are free",
            hint="give the pod more memory (resources of its container in spec.podTemplate)",
            field="spec.podTemplate",
        )


def refuse(connection: socket.socket, error: GraftError) -> None:
    """Answer Start with this fault, and nothing else, until the other end goes."""
    with connection.makefile("rb") as stream:
        while header := stream.read(FRAME_HEADER_BYTES):
            command = decode_command(stream.read(int.from_bytes(header, "big")))
            if isinstance(command, Start):
                connection.sendall(encode_events([BaseFailed(EngineFault.of(error))]))
