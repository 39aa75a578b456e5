"""Sources that are reached over the network: which endpoint and which token a URI has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from graft_runtime.contract.config import SOURCE_TOKEN_FILE, SourceMount
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.archives import ArchiveDirectory, Caps, Spool, open_archive, spool_archive
from graft_runtime.store.download import Download
from graft_runtime.store.hub import PUBLIC_ENDPOINT, HubAddress, HubDirectory, open_directory
from graft_runtime.store.network import AddressGuard, Network, Pace, make_client

HUB_SCHEME = "hf://"
ARCHIVE_SCHEME = "https://"
ARCHIVE_CAPS = Caps()
MAX_TOKEN_BYTES = 16 << 10


@dataclass(frozen=True)
class _Entry:
    """An entry of `spec.sources` for one prefix."""

    name: str
    endpoint: str | None
    directory: Path | None
    """Of its Secret, where it has one."""


class Remotes:
    """The remote sources of a pool. One that nobody declared is read without a token from its public place.

    Args:
        mounts: `spec.sources`.
        directories: where the Secret of each is mounted in this pod, by its name.
        allowed: networks beside the public ones that sources may be in.
        pace: what they must at least deliver.
    """

    def __init__(
        self, mounts: Sequence[SourceMount], directories: Mapping[str, Path], allowed: Sequence[Network], pace: Pace
    ) -> None:
        self._pace = pace
        self._client = make_client(AddressGuard(allowed), pace)
        self._entries = {
            _with_slash(prefix): _Entry(mount.name, mount.endpoint, directories.get(mount.name))
            for mount in mounts
            if mount.kind == "remote"
            for prefix in mount.uri_prefixes
        }

    def close(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def open_hub(self, uri: str, revision: str | None) -> Iterator[HubDirectory]:
        """What a URI names; see hub.open_directory for what it raises."""
        owner, _, rest = uri.removeprefix(HUB_SCHEME).strip("/").partition("/")
        name, _, folder = rest.partition("/")
        if not owner or not name or {".", ".."} & set(folder.split("/")):
            raise GraftError(
                ErrorCode.NOT_FOUND,
                f"`{uri}` names no repository",
                hint="write hf://OWNER/NAME or hf://OWNER/NAME/FOLDER",
            )
        entry = self._entry(uri)
        endpoint = (entry.endpoint if entry else None) or PUBLIC_ENDPOINT
        token = _read_token(entry, uri) if entry else None
        address = HubAddress(uri, f"{owner}/{name}", folder, endpoint.rstrip("/"), token)
        yield open_directory(address, revision, self._client, self._pace)

    @contextlib.contextmanager
    def open_archive(self, uri: str, spool: Callable[[], AbstractContextManager[Spool]]) -> Iterator[ArchiveDirectory]:
        """What lies in an archive; see Download.read, archives.spool_archive and open_archive for what it raises."""
        entry = self._entry(uri)
        token = _read_token(entry, uri) if entry else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with spool() as kept:
            with Download(self._client, uri, headers, pace=self._pace, shown=f"`{uri}`") as download:
                spool_archive(download.read, kept, uri, ARCHIVE_CAPS)
            yield open_archive(uri, kept.file, ARCHIVE_CAPS)

    def _entry(self, uri: str) -> _Entry | None:
        prefix = max((prefix for prefix in self._entries if _with_slash(uri).startswith(prefix)), key=len, default="")
        return self._entries.get(prefix)


def _read_token(entry: _Entry, uri: str) -> str | None:
    """Read at each use, so that a Secret that changes needs no restart."""
    if entry.directory is None:
        return None
    try:
        content = (entry.directory / SOURCE_TOKEN_FILE).read_bytes()
        token = content[:MAX_TOKEN_BYTES].decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not token or not token.isprintable():
        raise GraftError(
            ErrorCode.UNAUTHORIZED,
            f"`{uri}` can't be read: the Secret of the source `{entry.name}` holds no usable key `{SOURCE_TOKEN_FILE}`",
            hint=f"kubectl create secret generic NAME --from-file={SOURCE_TOKEN_FILE}=FILE",
        )
    return token


def _with_slash(text: str) -> str:
    return text if text.endswith("/") else text + "/"
