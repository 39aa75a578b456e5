"""The declared sources of a pool: from a URI to the reader of its scheme, and to the entry that the URI lies in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from graft_runtime.contract.config import SourceMount
from graft_runtime.contract.schemes import ARCHIVE, CLAIM, DIRECTORY, HUB, deepest_prefix, refused_character, scheme_of
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.network import DEFAULT_PACE, AddressGuard, Network, Pace, make_client, proxy_of_environment
from graft_runtime.store.sources import archive, hub, mounted
from graft_runtime.store.sources.directory import DEFAULT_CAPS, Access, Caps, Directory, OpenSource, Place, Spool

READERS: dict[str, OpenSource] = {
    HUB.name: hub.open_source,
    CLAIM.name: mounted.open_source,
    DIRECTORY.name: mounted.open_source,
    ARCHIVE.name: archive.open_source,
}
"""By scheme."""
SETTLED_SECONDS = 2.0


class Sources:
    """The declared sources of a pool. A remote one that nobody declared is read from its public place, without a token.

    Args:
        mounts: `spec.sources`.
        directories: where each is mounted in this pod, or its Secret, by its name.
        allowed_networks: where remote ones may be, beside public addresses.
        pace: what those must at least deliver.
        allowed_hosts: which ones may be asked; empty for any.
        caps: what an archive may be.
        settled_seconds: how long ago a mounted file must have changed last, to be known by its times.
    """

    def __init__(
        self,
        mounts: Sequence[SourceMount],
        directories: Mapping[str, Path],
        allowed_networks: Sequence[Network] = (),
        pace: Pace = DEFAULT_PACE,
        *,
        allowed_hosts: Sequence[str] = (),
        caps: Caps = DEFAULT_CAPS,
        settled_seconds: float = SETTLED_SECONDS,
    ) -> None:
        self._directories, self._pace, self._caps, self._settled_seconds = directories, pace, caps, settled_seconds
        self._client = make_client(AddressGuard(allowed_networks, allowed_hosts), pace, proxy=proxy_of_environment())
        self._mounts = {prefix: mount for mount in mounts for prefix in mount.prefixes}

    def close(self) -> None:
        """Break off what is read from remote sources."""
        self._client.close()

    def open(
        self, uri: str, revision: str | None, spool: Callable[[], AbstractContextManager[Spool]]
    ) -> AbstractContextManager[Directory]:
        """Open what a URI names, at a revision where its source has some.

        Args:
            uri: of the checkpoint.
            revision: a commit, a tag or a branch.
            spool: where an archive may be kept while it is open.

        Raises:
            GraftError: SourceNotDeclared, UnsafeFile, NotFound, Unauthorized, ForbiddenAddress, SourceUnavailable,
                Corrupt, NoCapacity.
        """
        place = self.place(uri, revision)
        access = Access(self._client, self._pace, self._caps, self._settled_seconds, spool)
        return READERS[place.scheme.name](place, access)

    def place(self, uri: str, revision: str | None = None) -> Place:
        """Return what a URI names, before it is opened. Raises GraftError: SourceNotDeclared, UnsafeFile."""
        if (character := refused_character(uri)) is not None:
            raise GraftError(
                ErrorCode.UNSAFE_FILE,
                f"the URI `{uri}` holds {character!r}, and a path has one spelling, in which nothing is escaped",
                hint="name the directory by its plain path below the source",
            )
        scheme, prefix = scheme_of(uri), deepest_prefix(self._mounts, uri)
        mount = self._mounts[prefix] if prefix is not None else None
        directory = self._directories.get(mount.name) if mount is not None else None
        if scheme is None or (scheme.mount != "remote" and directory is None):
            raise self._not_declared(uri)
        return Place(uri, scheme, revision, prefix or "", mount, directory)

    def _not_declared(self, uri: str) -> GraftError:
        mounted = [
            prefix
            for prefix, mount in self._mounts.items()
            if mount.kind != "remote" and mount.name in self._directories
        ]
        declared = ", ".join(f"`{prefix}…`" for prefix in sorted(mounted)) or "nothing"
        return GraftError(
            ErrorCode.SOURCE_NOT_DECLARED,
            f"the URI `{uri}` lies outside the declared sources ({declared})",
            hint="add a source for it to spec.sources",
        )
