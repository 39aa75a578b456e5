"""A repository of the Hugging Face Hub, or a folder of one, at one commit."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import build_hf_headers, validate_repo_id  # type: ignore[attr-defined]
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graft_runtime.contract.checkpoints import CheckpointFile, may_belong
from graft_runtime.contract.schemes import HUB, listed
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.download import Download, describe, raise_for_status
from graft_runtime.store.network import Pace
from graft_runtime.store.sources.directory import Access, Place
from graft_runtime.store.sources.token import read_token

DEFAULT_REVISION = "main"
COMMIT_PATTERN = r"^[0-9a-f]{40}$"
_COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_LISTING_BYTES = 32 << 20
LISTING_TRIES = 3
MAX_BLOB_BYTES = 64 << 20
"""Files above it are stored as large ones."""
_GATED = "GatedRepo"


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _LargeFile(_Message):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class _Sibling(_Message):
    rfilename: str
    size: int | None = Field(default=None, ge=0)
    blob_id: str | None = Field(default=None, alias="blobId")
    lfs: _LargeFile | None = None


class _Listing(_Message):
    sha: str = Field(pattern=COMMIT_PATTERN)
    siblings: list[_Sibling] = Field(max_length=200_000)


@dataclass(frozen=True)
class HubAddress:
    """Where a repository is, and with which right we read it."""

    uri: str
    repository: str
    """OWNER/NAME"""
    folder: str
    """Inside it; empty for its top."""
    endpoint: str
    token: str | None = None

    def __repr__(self) -> str:
        return f"HubAddress({self.uri!r}, {self.endpoint!r})"  # never the token


class HubDirectory:
    """A folder of a repository at one commit; `open_directory` makes it."""

    def __init__(
        self, address: HubAddress, commit: str, siblings: list[_Sibling], client: httpx2.Client, pace: Pace
    ) -> None:
        self.uri = address.uri
        self.revision = commit
        self.identity = f"{address.endpoint} {address.repository}@{commit} {address.folder}"
        """Of its content, which never changes."""
        self._address, self._client, self._pace = address, client, pace
        self._files = {sibling.rfilename: sibling for sibling in siblings}
        self._prefix = f"{address.folder}/" if address.folder else ""

    def names(self) -> list[str]:
        """Return the files at the top of the folder, and in its folders of modules, sorted."""
        below = (path.removeprefix(self._prefix) for path in self._files if path.startswith(self._prefix))
        return sorted(filter(may_belong, below))

    def folders_with(self, file: str) -> list[str]:
        """Return the directory's folders that hold `file`: what the URI may have meant."""
        below = (path.removeprefix(self._prefix) for path in self._files if path.startswith(self._prefix))
        split = (path.split("/") for path in below)
        return sorted(segments[0] for segments in split if len(segments) == 2 and segments[1] == file)

    def open_file(self, name: str) -> Download:
        """Open one of `names` for reading from the Hub; see Download.read for what reading raises."""
        path, size = self._prefix + name, self.size(name)
        url = hf_hub_url(self._address.repository, path, revision=self.revision, endpoint=self._address.endpoint)
        return Download(
            self._client, url, _headers(self._address), pace=self._pace, shown=f"`{self.uri}`: {name}", size=size
        )

    def size(self, name: str) -> int | None:
        """Return the bytes of a file as the Hub lists them."""
        sibling = self._files[self._prefix + name]
        return sibling.lfs.size if sibling.lfs else sibling.size

    def check(self, record: CheckpointFile, copy: Path) -> None:
        """Compare what was read with what the Hub lists. Raises GraftError: DigestMismatch."""
        listed = self._files[self._prefix + record.path]
        if listed.lfs is not None:
            actual, expected = f"sha256 {record.sha256}", f"sha256 {listed.lfs.sha256}"
        elif listed.blob_id is not None and record.size <= MAX_BLOB_BYTES:
            actual, expected = f"blob {_blob_id(copy)}", f"blob {listed.blob_id}"
        else:
            return
        if actual != expected:
            raise GraftError(
                ErrorCode.DIGEST_MISMATCH,
                f"`{self.uri}`: {record.path} is {actual}, the Hub lists {expected}",
                hint="the Hub or something between delivers other bytes; it is tried again",
            )


@contextlib.contextmanager
def open_source(place: Place, access: Access) -> Iterator[HubDirectory]:
    """Open a folder of a repository at the commit of a revision; see OpenSource."""
    owner, _, rest = place.uri.removeprefix(HUB.start).strip("/").partition("/")
    name, _, folder = rest.partition("/")
    if not owner or not name or {".", ".."} & set(folder.split("/")):
        raise GraftError(ErrorCode.NOT_FOUND, f"`{place.uri}` names no repository", hint=f"write {listed(HUB.written)}")
    address = HubAddress(place.uri, f"{owner}/{name}", folder, place.endpoint, read_token(place))
    yield open_directory(address, place.revision, access.client, access.pace)


def open_directory(address: HubAddress, revision: str | None, client: httpx2.Client, pace: Pace) -> HubDirectory:
    """Find out which commit a revision is, and what is in it.

    Raises:
        GraftError: NotFound, Unauthorized, ForbiddenAddress, SourceUnavailable.
    """
    try:
        validate_repo_id(address.repository)
    except HFValidationError as error:
        raise GraftError(ErrorCode.NOT_FOUND, f"`{address.uri}` names no repository: {error}") from error
    listing = _read_listing(address, revision or DEFAULT_REVISION, client, pace)
    if _COMMIT.fullmatch(revision or "") and listing.sha != revision:
        raise GraftError(
            ErrorCode.DIGEST_MISMATCH,
            f"`{address.uri}`: the Hub answers with {listing.sha}, expected commit {revision}",
        )
    directory = HubDirectory(address, listing.sha, listing.siblings, client, pace)
    if not directory.names() and not any(path.startswith(f"{address.folder}/") for path in directory._files):
        raise GraftError(
            ErrorCode.NOT_FOUND,
            f"`{address.uri}` holds nothing: `{address.repository}` has no folder `{address.folder}` at {listing.sha}",
            hint="check the folder, or name another revision",
        )
    return directory


def _read_listing(address: HubAddress, revision: str, client: httpx2.Client, pace: Pace) -> _Listing:
    url = f"{address.endpoint}/api/models/{quote(address.repository)}/revision/{quote(revision, safe='')}"
    tries = min(pace.tries, LISTING_TRIES)
    for failures in range(1, tries + 1):
        try:
            with client.stream("GET", url, params={"blobs": "true"}, headers=_headers(address)) as response:
                if response.status_code == 200:
                    return _Listing.model_validate_json(_read_body(response, pace))
                _refuse(address, revision, response)
        except httpx2.HTTPError as error:
            if failures == tries:
                raise _unavailable(address, describe(error)) from error
            time.sleep(pace.pauses.seconds(failures))
        except ValidationError as error:
            raise _unavailable(address, f"its answer is no listing: {error.errors()[0]['msg']}") from error
    raise AssertionError("the last try raises")


def _read_body(response: httpx2.Response, pace: Pace) -> bytes:
    body, started = bytearray(), time.monotonic()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MAX_LISTING_BYTES:
            raise httpx2.RemoteProtocolError(f"its listing is longer than {MAX_LISTING_BYTES} bytes")
        if time.monotonic() - started > pace.free_seconds:
            raise httpx2.ReadTimeout(f"its listing took longer than {pace.free_seconds:.0f} s")
    return bytes(body)


def _refuse(address: HubAddress, revision: str, response: httpx2.Response) -> NoReturn:
    """Raise GraftError for an answer that stays as it is, httpx2.HTTPError for an answer that is worth another try."""
    why = response.headers.get("x-error-code", "")
    if why == _GATED:
        raise GraftError(
            ErrorCode.UNAUTHORIZED,
            f"`{address.uri}` is gated: access has to be granted by its authors",
            hint="accept its terms on the Hub with the account whose token the source's Secret holds",
        )
    shown = f"`{address.uri}` at revision `{revision}`"
    if response.status_code in {401, 403} and address.token is None:
        raise GraftError(
            ErrorCode.UNAUTHORIZED,
            f"{shown} was refused without a token: it is private, or does not exist",
            hint="check the name, or add to spec.sources: {name: <a name>, uriPrefixes:"
            f" ['{HUB.below(address.repository.partition('/')[0])}'], secretName: <a Secret with token and hosts>}}",
        )
    raise_for_status(response, shown)
    raise httpx2.RemoteProtocolError(f"it answered {response.status_code}")


def _blob_id(file: Path) -> str:
    """Return the id by which git names a file's content."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _headers(address: HubAddress) -> dict[str, str]:
    return build_hf_headers(token=address.token or False, library_name="graft")


def _unavailable(address: HubAddress, why: str) -> GraftError:
    return GraftError(ErrorCode.SOURCE_UNAVAILABLE, f"`{address.uri}` can't be read: {why}", hint="it is tried again")
