"""A checkpoint in the cache of another pod, read over that pod's control port.

Its list of files is held against the digest before a byte of them is asked for, and each file against the list.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import httpx2
from pydantic import ValidationError

from graft_runtime.contract.checkpoints import CheckpointFile
from graft_runtime.contract.control import CheckpointFiles, Peer
from graft_runtime.contract.ports import control_url
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.checkpoints import digest_of
from graft_runtime.store.download import Download
from graft_runtime.store.network import Pace

MAX_LIST_BYTES = 1 << 20


class PeerDirectory:
    """A checkpoint of another pod; see Directory.

    Args:
        client: follows no redirects.
        peer: the other pod.
        digest: of the checkpoint.
        pace: what it must at least deliver.

    Raises:
        GraftError: NotFound, Unauthorized, SourceUnavailable; DigestMismatch, where its list makes another digest.
    """

    identity: str | None = None
    revision: str | None = None

    def __init__(self, client: httpx2.Client, peer: Peer, digest: str, pace: Pace) -> None:
        self.uri = f"{control_url(str(peer.address))}/checkpoints/{digest}"
        self._client, self._peer, self._pace = client, peer, pace
        self._files = {file.path: file for file in self._list(digest)}

    def names(self) -> list[str]:
        """Return the names of its files, sorted."""
        return sorted(self._files)

    def folders_with(self, file: str) -> list[str]:
        """Return nothing: there are no folders."""
        return []

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        return self._files[name].size

    def open_file(self, name: str) -> Download:
        """Open a file for reading."""
        return self._download(f"/{quote(name)}", self.size(name), self._pace)

    def check(self, record: CheckpointFile, copy: Path) -> None:
        """Compare a file that was read with the list. Raises GraftError: DigestMismatch."""
        if record != self._files[record.path]:
            what = f"`{self.uri}` has other bytes in {record.path} than its list says"
            raise GraftError(ErrorCode.DIGEST_MISMATCH, what)

    def _list(self, digest: str) -> tuple[CheckpointFile, ...]:
        content = bytearray()
        with self._download("", None, self._pace) as opened:
            while piece := opened.read():
                content += piece
                if len(content) > MAX_LIST_BYTES:
                    raise self._no_list(f"it has more than {MAX_LIST_BYTES} bytes")
        try:
            files = CheckpointFiles.read(bytes(content)).files
        except ValidationError as error:
            raise self._no_list(str(error.errors(include_url=False)[0]["msg"])) from None
        if digest_of(files) != digest:
            raise self._no_list("its files make another digest")
        return files

    def _download(self, path: str, size: int | None, pace: Pace) -> Download:
        headers = {"Authorization": f"Bearer {self._peer.token}"}
        return Download(self._client, self.uri + path, headers, pace=pace, shown=f"`{self.uri}{path}`", size=size)

    def _no_list(self, why: str) -> GraftError:
        return GraftError(ErrorCode.DIGEST_MISMATCH, f"`{self.uri}` lists no files of this digest: {why}")
