"""Base models whose weights are read where they lie in a mount: hashed there, held open, and looked at from then on."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from graft_runtime.contract.checkpoints import CheckpointFile, matches
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.arrivals import Arrivals
from graft_runtime.store.cache import Cached, disk_fault
from graft_runtime.store.checkpoints import config_file, digest_of, select_files
from graft_runtime.store.contents import Contents
from graft_runtime.store.sources import Sources
from graft_runtime.store.sources.mounted import MountedDirectory, Stamp

WEIGHTS = ("*.safetensors",)
"""Those of modules in folders are small, and copied."""


@dataclass(frozen=True)
class HeldFile:
    """A file that is held open: another one that gets its name is never read."""

    name: str
    file: FileIO
    stamp: Stamp
    """When it was opened, before it was hashed."""

    @property
    def path(self) -> str:
        """Return where any process of this container and user opens the same file, whatever has its name by then."""
        return f"/proc/{os.getpid()}/fd/{self.file.fileno()}"

    def is_as_hashed(self) -> bool:
        """Tell whether the file is known to have changed in nothing. Blocking."""
        try:
            return Stamp.of(os.fstat(self.file.fileno())) == self.stamp
        except OSError:  # a file system of the network has lost it
            return False


@dataclass(frozen=True, kw_only=True)
class InPlace(Cached):
    """A checkpoint whose directory holds links to its weights, which are held open, and copies of its other files."""

    uri: str
    weights: tuple[HeldFile, ...]

    def check(self) -> None:
        for held in self.weights:
            if not held.is_as_hashed():
                raise GraftError(
                    ErrorCode.DIGEST_MISMATCH,
                    f"`{self.uri}`: {held.name} has changed since it was hashed, expected {self.digest}",
                    hint="put the old file back, or set spec.baseModel.digest to that of the new files; give write"
                    " access to what is served in place to nobody, or leave spec.baseModel.inPlace out",
                )


class InPlaceCheckpoints:
    """What this process reads in place. Blocking; one thread at a time.

    Args:
        directory: of this pod alone; what an earlier process left in it is removed.
        sources: the declared ones.
    """

    def __init__(self, directory: Path, sources: Sources) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        contents = Contents(directory, None, tuple)
        self._arrivals = Arrivals(contents.arriving, contents)
        self._sources = sources
        self._known: dict[str, str] = {}
        """The digests of what was hashed, by the identities of the directories."""
        self._held = contextlib.ExitStack()
        """What stays open."""

    def open(self, uri: str, digest: str | None) -> InPlace:
        """Hash a base model where it lies, and hold its weights open until `close`.

        Raises:
            GraftError: DigestMismatch, and see Cache.copy.
        """
        try:
            with contextlib.ExitStack() as stack:
                opened = self._open(stack, uri, digest)
                self._held.push(stack.pop_all())
                return opened
        except OSError as error:
            raise disk_fault(uri, error) from error

    def close(self) -> None:
        """Let go of what is held open, and of the directories that lead to it."""
        self._held.close()

    def _open(self, stack: contextlib.ExitStack, uri: str, expected: str | None) -> InPlace:
        with self._sources.open(uri, None, lambda: self._arrivals.spool(uri, None)) as source:
            if not isinstance(source, MountedDirectory) or expected is None:
                raise GraftError(
                    ErrorCode.INVALID_SPEC,
                    f"`{uri}` can't be served in place: that takes a mounted directory, and a digest",
                    hint="leave spec.baseModel.inPlace out, or set spec.baseModel.digest",
                )
            if source.identity is None:
                raise GraftError(
                    ErrorCode.SOURCE_UNAVAILABLE,
                    f"`{uri}` can't be served in place yet: what is in it changed a moment ago",
                    hint="it is tried again; put nothing else into the directory that changes all the time",
                )
            _check_digest(uri, self._known.get(source.identity, expected), expected)
            names, config = source.names(), config_file("model")
            folders = [] if config in names else source.folders_with(config)
            arrival = stack.enter_context(self._arrivals.arrive(uri, None, None))
            weights: list[HeldFile] = []
            for name in select_files(names, "model", uri, folders):
                if not matches(name, WEIGHTS):
                    arrival.copy_file(source, name)
                    continue
                file = stack.enter_context(source.open_file(name))
                held = HeldFile(name, file, Stamp.of(os.fstat(file.fileno())))
                arrival.records[name] = record = _hashed(held, uri)
                source.check(record, arrival.directory)
                (arrival.directory / name).symlink_to(held.path)
                weights.append(held)
            digest = digest_of(arrival.records.values())
            self._known[source.identity] = digest
            _check_digest(uri, digest, expected)
            return InPlace(digest, arrival.directory, arrival.taken, uri=uri, weights=tuple(weights))


def _hashed(held: HeldFile, uri: str) -> CheckpointFile:
    try:
        sha256 = hashlib.file_digest(held.file, "sha256").hexdigest()
    except OSError as error:
        raise GraftError(
            ErrorCode.SOURCE_UNAVAILABLE,
            f"`{uri}` broke off in {held.name}: {error.strerror}",
            hint="it is tried again",
        ) from error
    return CheckpointFile(path=held.name, size=held.stamp.size, sha256=sha256)


def _check_digest(uri: str, digest: str, expected: str) -> None:
    if digest != expected:
        raise GraftError(
            ErrorCode.DIGEST_MISMATCH,
            f"`{uri}` holds {digest}, expected {expected}",
            hint="put the old files back, or set spec.baseModel.digest to what is there now",
        )
