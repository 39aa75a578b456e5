"""What the files of an adapter say, and why they would be refused, whatever the base. Holds no torch."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path

from graft_runtime.adapters.files import AdapterFiles, read_adapter_files
from graft_runtime.adapters.fit import fitted
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.contract import AdapterInspection, Fault
from graft_runtime.errors import GraftError
from graft_runtime.store.checkpoints import FileRecord, digest_of, select_files

HIGHEST_RANK = 1 << 20
"""No pool's limit."""


def inspect_adapter(
    directory: Path,
    *,
    name: str,
    max_rank: int = HIGHEST_RANK,
    layout: Callable[[], BaseLayout] | None = None,
) -> AdapterInspection:
    """Reads config and header, and no weight but for the digest.

    Args:
        directory: of the adapter.
        name: how errors call it.
        max_rank: the pool's limit.
        layout: of a base that it ought to fit; it may raise GraftError.
    """
    found = AdapterInspection()
    try:
        files = read_adapter_files(directory, name=name, max_rank=max_rank)
        found = described(files, local_digest(directory, name))
        if layout is None:
            return found
        files, _ = fitted(files, layout())
        return found.model_copy(update={"remapped": files.remapped})
    except GraftError as error:
        return found.model_copy(update={"fault": Fault.of(error)})


def described(files: AdapterFiles, digest: str | None) -> AdapterInspection:
    """The report of an adapter whose config and header are in order."""
    return AdapterInspection(
        method=files.method,
        rank=files.rank,
        module_count=len({part.path for part in files.parts}),
        parameter_count=sum(math.prod(span.shape) for span in files.tensors.values()),
        bytes=files.bytes,
        digest=digest,
        base_model=files.recipe.base_model,
        remapped=files.remapped,
    )


def local_digest(directory: Path, name: str) -> str:
    """The digest that the adapter would have in a pool.

    Raises:
        GraftError: NotAnAdapter, UnsafeFile.
    """
    records = []
    for file in select_files(sorted(os.listdir(directory)), "adapter", name):
        with (directory / file).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            records.append(FileRecord(file, os.fstat(stream.fileno()).st_size, digest))
    return digest_of(records)


def for_people(found: AdapterInspection, name: str) -> str:
    """The report as lines of text."""
    lines = [f"adapter     {name}"]
    if found.method is not None:
        lines += [
            f"method      {found.method}, rank {found.rank}",
            f"modules     {found.module_count} with {found.parameter_count:,} parameters, {found.bytes:,} bytes",
            f"digest      {found.digest}",
            f"trained for {found.base_model or 'it does not say'}",
        ]
    if found.remapped is not None:
        lines.append(f"remapped    {found.remapped}")
    if found.fault is not None:
        lines += ["", "it would be refused:", f"{found.fault.message}   [code: {found.fault.code.value}]"]
    return "\n".join(lines)
