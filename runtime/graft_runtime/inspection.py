"""What the files of an adapter say, and why they would be refused. Holds no torch."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graft_runtime.adapters.files import AdapterFiles, read_adapter_files
from graft_runtime.adapters.fit import fitted
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.vocabulary import own_rows, vocabulary_fault
from graft_runtime.contract.checkpoints import CheckpointFile
from graft_runtime.contract.control import AdapterInspection, Check
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import GraftError
from graft_runtime.store.checkpoints import digest_of, select_files
from graft_runtime.tokenizing.files import TOKENIZER_FILE
from graft_runtime.tokenizing.own_tokenizer import brings_one
from graft_runtime.tokenizing.text_formats import highest_token

HIGHEST_RANK = 1 << 20
"""No pool's limit."""
_IN_WORDS = {
    Check.BASE: "whether it fits a base model (--base DIR)",
    Check.TOKENIZER: "its own tokenizer beside the base model's",
    Check.VALUES: "whether its values are finite and change anything",
    Check.TRIAL: "a trial on the model",
}


@dataclass(frozen=True)
class StoredBase:
    """A base model that is not loaded."""

    directory: Path
    """Of its checkpoint."""
    layout: Callable[[], BaseLayout]
    """Raises GraftError."""
    compiled: Callable[[AdapterFiles], AdapterFacts] | None = None
    """Reads and compiles all of an adapter. Raises GraftError. None: its values are not looked at."""


def inspect_adapter(
    directory: Path, *, name: str, max_rank: int = HIGHEST_RANK, base: StoredBase | None = None
) -> AdapterInspection:
    """Read an adapter's config and header, and no weight but for the digest.

    Args:
        directory: of the adapter.
        name: how errors call it.
        max_rank: the pool's limit.
        base: what it ought to fit; None: whatever the base.
    """
    try:
        files = read_adapter_files(directory, name=name, max_rank=max_rank)
        report = described(files, local_digest(directory, name))
    except GraftError as error:
        return AdapterInspection(fault=Fault.of(error), unchecked=tuple(Check))
    return report if base is None else _on_base(base, files, report)


def described(files: AdapterFiles, digest: str | None) -> AdapterInspection:
    """Return the report of an adapter whose config and header are in order."""
    return AdapterInspection(
        facts=files.facts,
        parameter_count=sum(math.prod(span.shape) for span in files.tensors.values()),
        bytes=files.bytes,
        digest=digest,
        base_model=files.recipe.base_model,
        unchecked=tuple(Check),
    )


def passed(report: AdapterInspection, *checks: Check) -> AdapterInspection:
    """Return the report after these checks as well."""
    return report.model_copy(update={"unchecked": tuple(check for check in report.unchecked if check not in checks)})


def refused(report: AdapterInspection, error: GraftError) -> AdapterInspection:
    """Return the report of an adapter that a check has refused."""
    return report.model_copy(update={"fault": Fault.of(error)})


def _on_base(base: StoredBase, files: AdapterFiles, report: AdapterInspection) -> AdapterInspection:
    try:
        layout = base.layout()
        on_base, own_layout = fitted(files, layout)
        report = passed(report, Check.BASE).model_copy(update={"facts": on_base.facts})
        if base.compiled is not None:
            report = passed(report, Check.VALUES).model_copy(update={"facts": base.compiled(files)})
        if brings_one(files.directory) and not (base.directory / TOKENIZER_FILE).exists():
            return report
        highest = highest_token(base.directory, files.directory, f"adapter `{files.name}`")
    except GraftError as error:
        return refused(report, error)
    fault = vocabulary_fault(files.name, highest, own_rows(own_layout, layout), layout.vocabulary)
    return passed(report, Check.TOKENIZER) if fault is None else refused(report, fault)


def local_digest(directory: Path, name: str) -> str:
    """Return the digest that the adapter would have in a pool.

    Raises:
        GraftError: NotAnAdapter, UnsafeFile.
    """
    records = []
    for file in select_files(sorted(os.listdir(directory)), "adapter", name):
        with (directory / file).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            records.append(CheckpointFile(path=file, size=os.fstat(stream.fileno()).st_size, sha256=digest))
    return digest_of(records)


def for_people(report: AdapterInspection, name: str) -> str:
    """Return the report as lines of text."""
    lines = [f"adapter     {name}"]
    facts = report.facts
    if facts is not None:
        lines += [
            f"method      {facts.method}, rank {facts.rank}",
            f"modules     {facts.module_count} with {report.parameter_count:,} parameters, {report.bytes:,} bytes",
            f"digest      {report.digest}",
            f"trained for {report.base_model or 'it does not say'}",
        ]
    if facts is not None and facts.remapped is not None:
        lines.append(f"remapped    {facts.remapped}")
    if facts is not None and facts.unused is not None:
        lines.append(f"unused      {facts.unused}")
    if report.fault is not None:
        lines += ["", "it would be refused:", f"{report.fault.message}   [code: {report.fault.code.value}]"]
    else:
        lines += [f"not checked {_IN_WORDS[check]}" for check in report.unchecked]
    return "\n".join(lines)
