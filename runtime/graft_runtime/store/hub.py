"""`hf://OWNER/NAME[/SUBFOLDER]`: a directory of one commit of a repository on a Hugging Face Hub."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

import httpx2
from pydantic import BaseModel, Field, ValidationError

from graft_runtime.contract import SourceMount
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.hub_download import Download, Expected
from graft_runtime.store.hub_network import Network, make_client

logger = logging.getLogger(__name__)

SCHEME = "hf://"
PUBLIC_ENDPOINT = "https://huggingface.co"
DEFAULT_REVISION = "main"
TOKEN_FILE = "token"  # noqa: S105 - the key of a Secret
ATTEMPTS = 4
FIRST_RETRY_SECONDS = 0.5
MAX_REDIRECTS = 5
MAX_LISTING_BYTES = 64 << 20
MAX_TOKEN_BYTES = 4096

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_TOKEN = re.compile(r"[!-~]+")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class _LargeFile(BaseModel):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Sibling(BaseModel):
    rfilename: str
    size: int | None = Field(default=None, ge=0)
    blob_id: str | None = Field(default=None, alias="blobId", max_length=64)
    lfs: _LargeFile | None = None


class _ModelInfo(BaseModel):
    """What the Hub's API tells of one revision."""

    sha: str = Field(max_length=64)
    siblings: list[_Sibling] = []


@dataclass(frozen=True)
class Access:
    """How a repository is reached."""

    endpoint: str = PUBLIC_ENDPOINT
    secret: Path | None = None
    """The directory that its Secret is mounted at."""
    name: str = ""
    """Of the declared source."""


class Hub:
    """Blocking; safe to use from several threads.

    Args:
        mounts: the declared sources of kind `hub`.
        directories: where their Secrets are mounted, by name.
        allowed: networks that may be reached although they aren't public.
    """

    def __init__(
        self, mounts: Sequence[SourceMount], directories: Mapping[str, Path], allowed: Sequence[Network] = ()
    ) -> None:
        self._accesses = {
            prefix: Access((mount.endpoint or PUBLIC_ENDPOINT).rstrip("/"), directories.get(mount.name), mount.name)
            for mount in mounts
            for prefix in mount.uri_prefixes
        }
        self._allowed = allowed

    @contextlib.contextmanager
    def open(self, uri: str, revision: str | None) -> Iterator[HubDirectory]:
        """The directory that a URI names, of the commit that the revision (None: `main`) names now.

        Raises:
            GraftError: UnsafeFile, NotFound, Unauthorized, SourceUnavailable, SourceNotDeclared.
        """
        repository, folder = _split(uri)
        access = self._access(uri)
        with make_client(self._allowed) as client:
            session = Session(client, access, uri)
            info = self._info(session, repository, revision or DEFAULT_REVISION)
            yield HubDirectory(session, repository, folder, info)

    def _access(self, uri: str) -> Access:
        holding = [prefix for prefix in self._accesses if (uri + "/").startswith(prefix)]
        return self._accesses[max(holding, key=len)] if holding else Access()

    def _info(self, session: Session, repository: str, revision: str) -> _ModelInfo:
        path = f"/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
        try:
            info = _ModelInfo.model_validate(session.read_json(path))
        except ValidationError as error:
            raise session.unavailable(f"its listing can't be understood: {error.errors()[0]['msg']}") from None
        if not _COMMIT.fullmatch(info.sha):
            raise session.unavailable("the hub names no commit")
        if _COMMIT.fullmatch(revision) and info.sha != revision:
            raise GraftError(
                ErrorCode.DIGEST_MISMATCH,
                f"`{session.uri}`: the hub answers with commit {info.sha}, expected {revision}",
            )
        return info


class HubDirectory:
    """A directory of one commit: what the hub listed, file by file on request."""

    def __init__(self, session: Session, repository: str, folder: str, info: _ModelInfo) -> None:
        self._session, self._repository, self._folder = session, repository, folder
        self.uri, self.revision = session.uri, info.sha
        below = {
            sibling.rfilename.removeprefix(folder): sibling
            for sibling in info.siblings
            if sibling.rfilename.startswith(folder) and "\0" not in sibling.rfilename
        }
        if folder and not below:
            raise GraftError(
                ErrorCode.NOT_FOUND,
                f"`{self.uri}` holds nothing: {repository} has no folder `{folder[:-1]}` in commit {info.sha}",
                hint="check the path and the revision; it is looked for again",
            )
        self._files = below

    def names(self) -> list[str]:
        """The files in it, sorted."""
        return sorted(name for name in self._files if "/" not in name)

    def folders_with(self, file: str) -> list[str]:
        """The folders in it that hold `file`: what the URI may have meant."""
        folders = (name.removesuffix(f"/{file}") for name in self._files if name.endswith(f"/{file}"))
        return sorted(folder for folder in folders if "/" not in folder)

    @contextlib.contextmanager
    def open_file(self, name: str) -> Iterator[Download]:
        """Opens a file for reading; its last read checks what was read against what the hub listed.

        Raises:
            GraftError: NotFound, Unauthorized, SourceUnavailable, SourceNotDeclared; reading also DigestMismatch.
        """
        sibling = self._files[name]
        expected = Expected(sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)
        path = f"/{self._repository}/resolve/{self.revision}/{quote(self._folder + name)}"
        with contextlib.closing(Download(self._session, path, name, expected)) as download:
            yield download


class Session:
    """Requests to one hub for one URI. The token goes to the endpoint alone, whatever redirects say.

    Args:
        client: see make_client.
        access: the endpoint, and the Secret that is read anew for each request.
        uri: how errors call it.
    """

    def __init__(self, client: httpx2.Client, access: Access, uri: str) -> None:
        self._client, self._access, self.uri = client, access, uri

    def read_json(self, path: str) -> object:
        """Raises GraftError: NotFound, Unauthorized, SourceUnavailable, SourceNotDeclared."""
        response = self.get(path, {})
        try:
            content = bytearray()
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > MAX_LISTING_BYTES:
                    raise self.unavailable(f"its listing has more than {MAX_LISTING_BYTES} bytes")
            return json.loads(content)
        except httpx2.TransportError as error:
            raise self.unavailable(f"the hub broke off: {type(error).__name__}") from None
        except (ValueError, RecursionError):
            raise self.unavailable("the hub answers with something else than JSON") from None
        finally:
            response.close()

    def get(self, path: str, headers: Mapping[str, str]) -> httpx2.Response:
        """An answer of 200 or 206, its body still to be read; to be closed by the caller.

        Raises:
            GraftError: NotFound, Unauthorized, SourceUnavailable, SourceNotDeclared.
        """
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_RETRY_SECONDS * 2 ** (attempt - 1))
            last = attempt == ATTEMPTS - 1
            try:
                response = self._follow(self._access.endpoint + path, headers)
            except httpx2.TransportError as error:
                logger.warning("`%s`: the hub can't be reached: %s", self.uri, type(error).__name__)
                if last:
                    raise self.unavailable(f"the hub can't be reached: {type(error).__name__}") from None
                continue
            if response.status_code in (200, 206):
                return response
            response.close()
            if last or response.status_code not in _PASSING:
                raise self._refusal(response)
        raise AssertionError("unreachable")

    def unavailable(self, why: str) -> GraftError:
        """Something that may pass."""
        return GraftError(ErrorCode.SOURCE_UNAVAILABLE, f"`{self.uri}` can't be read: {why}", hint="it is tried again")

    def _follow(self, url: str, headers: Mapping[str, str]) -> httpx2.Response:
        for _ in range(MAX_REDIRECTS + 1):
            sent = {"User-Agent": "graft", "Accept-Encoding": "identity", **headers}
            if _origin(url) == _origin(self._access.endpoint) and (token := self._token()) is not None:
                sent["Authorization"] = f"Bearer {token}"
            try:
                response = self._client.send(self._client.build_request("GET", url, headers=sent), stream=True)
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, ValueError):
                raise self.unavailable("the hub points to an address that is none") from None
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or location is None:
                return response
            response.close()
            url = urljoin(url, location)
        raise self.unavailable(f"the hub redirects more than {MAX_REDIRECTS} times")

    def _token(self) -> str | None:
        """Raises GraftError: Unauthorized."""
        if self._access.secret is None:
            return None
        try:
            with (self._access.secret / TOKEN_FILE).open("rb") as file:
                token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            token = ""
        if not _TOKEN.fullmatch(token):
            raise GraftError(
                ErrorCode.UNAUTHORIZED,
                f"`{self.uri}`: the Secret of the source `{self._access.name}` holds no usable key `{TOKEN_FILE}`",
                hint=f"put an access token of the hub into the Secret, under the key `{TOKEN_FILE}`",
            )
        return token

    def _refusal(self, response: httpx2.Response) -> GraftError:
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        if status in (401, 403):
            why = "it is gated" if code == "GatedRepo" else "it is private or gated, or does not exist"
            known = (
                f"the token of the source `{self._access.name}`" if self._access.secret else "requests without a token"
            )
            return GraftError(
                ErrorCode.UNAUTHORIZED,
                f"the hub refuses {known} for `{self.uri}` ({status}): {why}",
                hint="declare a source with its uriPrefixes and the secretName of a token that may read it",
            )
        if status in _PASSING or status >= 500:
            return self.unavailable(f"the hub answers with {status}")
        what = {"RevisionNotFound": "revision", "EntryNotFound": "file"}.get(code, "repository, revision or file")
        return GraftError(
            ErrorCode.NOT_FOUND,
            f"`{self.uri}`: the hub has no such {what} ({status})",
            hint="check the name and the revision; it is looked for again",
        )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname, port or {"https": 443, "http": 80}.get(parts.scheme)


def _split(uri: str) -> tuple[str, str]:
    """OWNER/NAME, and the folder with a slash at its end or nothing. Raises GraftError: UnsafeFile, NotFound."""
    parts = [part for part in unquote(uri.removeprefix(SCHEME)).split("/") if part not in ("", ".")]
    if ".." in parts or any("\0" in part for part in parts):
        raise GraftError(ErrorCode.UNSAFE_FILE, f"the URI `{uri}` holds `..` or a NUL", hint="write the path out")
    if len(parts) < 2 or not all(_PART.fullmatch(part) for part in parts[:2]):
        raise GraftError(ErrorCode.NOT_FOUND, f"the URI `{uri}` names no repository", hint="write hf://OWNER/NAME")
    return "/".join(parts[:2]), "".join(f"{part}/" for part in parts[2:])
