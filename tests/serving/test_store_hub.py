"""hf:// sources against a small hub on loopback: what is fetched, what is checked, who gets the token."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from graft_runtime.contract import SourceMount
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store import hub, hub_download
from graft_runtime.store.cache import Cache, Cached
from graft_runtime.store.checkpoints import Kind
from graft_runtime.store.hub_network import GuardedBackend
from graft_runtime.store.sources import Sources

COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": bytes(range(256)) * 2000,
    "training.bin": b"a pickle",
    "sub/adapter_config.json": b'{"r": 8}',
    "sub/adapter_model.safetensors": b"weights",
    "pickled/adapter_config.json": b"{}",
    "pickled/adapter_model.bin": b"a pickle",
}


class FakeHub(ThreadingHTTPServer):
    """The Hub's API as huggingface_hub calls it: a listing, files behind a redirect to a CDN."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(FILES)
        self.token: str | None = None
        self.cut_after: int | None = None
        """Bytes after which an answer of a file breaks off."""
        self.ignores_range = False
        self.statuses: list[int] = []
        """What the next requests are answered with."""
        self.cdn: str | None = None
        self.served: dict[str, bytes] = {}
        """What is sent in place of what is listed."""
        self.requests: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((path, dict(self.headers)))
        if self.server.statuses:
            self.answer(self.server.statuses.pop(0))
        elif path.startswith("/cdn/"):
            self.send_file(path.removeprefix("/cdn/"))
        elif self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401)
        elif path.startswith("/api/models/acme/lora"):
            revision = path.removeprefix("/api/models/acme/lora").removeprefix("/revision/") or "main"
            self.send_listing(revision)
        elif path.startswith(f"/acme/lora/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/acme/lora/resolve/{COMMIT}/")
            if self.server.cdn:
                self.answer(302, {"Location": f"{self.server.cdn}/cdn/{name}"})
            else:
                self.send_file(name)
        else:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})

    def send_listing(self, revision: str) -> None:
        if revision not in ("main", COMMIT):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [listed(name, content) for name, content in self.server.files.items()]
        self.answer(200, content=json.dumps({"id": "acme/lora", "sha": COMMIT, "siblings": siblings}).encode())

    def send_file(self, name: str) -> None:
        content = self.server.served.get(name, self.server.files.get(name, b""))
        start, status, headers = 0, 200, {}
        if (given := self.headers.get("Range")) and not self.server.ignores_range:
            start, status = int(given.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut, self.server.cut_after = self.server.cut_after, None
        self.answer(status, headers, content[start:], cut)

    def answer(
        self, status: int, headers: dict[str, str] | None = None, content: bytes = b"", cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:cut])

    def log_message(self, *arguments: Any) -> None:
        pass


def listed(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(".safetensors"):
        sha256 = hashlib.sha256(content).hexdigest()
        sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
    return sibling


def running() -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(hub, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(hub_download, "FIRST_RESUME_SECONDS", 0.001)
    yield from running()


@pytest.fixture
def elsewhere() -> Iterator[FakeHub]:
    yield from running()


class Reader:
    """Copies from the hub into a cache."""

    def __init__(self, server: FakeHub, directory: Path) -> None:
        self.server, self.directory = server, directory
        self.secret = directory / "secret"
        self.cache = Cache(directory / "cache", None, tuple)

    def copy(
        self, uri: str = "hf://acme/lora", revision: str | None = None, kind: Kind = "adapter", allowed: Any = LOOPBACK
    ) -> Cached:
        mount = SourceMount(name="hub", kind="hub", uri_prefixes=("hf://acme/",), endpoint=self.server.url)
        directories = {"hub": self.secret} if self.secret.exists() else {}
        return self.cache.copy(Sources((mount,), directories, allowed), uri, kind, revision)

    def refused(self, *arguments: Any, **named: Any) -> GraftError:
        with pytest.raises(GraftError) as caught:
            self.copy(*arguments, **named)
        assert list((self.directory / "cache" / "partial").iterdir()) == []
        return caught.value

    def give_token(self, token: str) -> None:
        self.secret.mkdir(exist_ok=True)
        (self.secret / "token").write_text(token)


@pytest.fixture
def reader(server: FakeHub, tmp_path: Path) -> Reader:
    return Reader(server, tmp_path)


def test_a_repository_becomes_plain_files_under_its_commit(reader: Reader) -> None:
    cached = reader.copy()
    assert cached.revision == COMMIT
    found = {path.name: path.read_bytes() for path in cached.directory.iterdir()}
    assert found == {name: FILES[name] for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert not any(path.is_symlink() for path in cached.directory.iterdir())
    assert not any("training.bin" in path for path, _ in reader.server.requests), "only what belongs to a checkpoint"
    assert reader.copy("hf://acme/lora/sub", COMMIT).digest != cached.digest


def test_the_stand_in_speaks_as_the_library_expects(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    from huggingface_hub import HfApi
    from huggingface_hub.utils._http import close_session

    info = HfApi(endpoint=server.url, token=False).model_info("acme/lora", revision="main", files_metadata=True)
    close_session()
    assert info.sha == COMMIT
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    assert sizes == {name: len(content) for name, content in FILES.items()}


@pytest.mark.parametrize("ignores_range", [False, True])
def test_what_broke_off_is_taken_up(reader: Reader, ignores_range: bool) -> None:
    reader.server.ignores_range = ignores_range
    reader.server.files["adapter_config.json"] = b" " * 3000
    reader.server.cut_after = 1000
    assert (reader.copy().directory / "adapter_config.json").read_bytes() == b" " * 3000
    assert any(headers.get("Range") == "bytes=1000-" for _, headers in reader.server.requests)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("longer", [0, 1])
def test_other_bytes_than_listed_are_refused(reader: Reader, name: str, longer: int) -> None:
    reader.server.served[name] = b"x" * (len(FILES[name]) + longer)
    assert reader.refused().code is ErrorCode.DIGEST_MISMATCH


@pytest.mark.parametrize(
    ("uri", "revision", "code"),
    [
        ("hf://acme/nothing", None, ErrorCode.NOT_FOUND),
        ("hf://acme", None, ErrorCode.NOT_FOUND),
        ("hf://acme/lora", "gone", ErrorCode.NOT_FOUND),
        ("hf://acme/lora/nowhere", None, ErrorCode.NOT_FOUND),
        ("hf://acme/lora/su", None, ErrorCode.NOT_FOUND),
        ("hf://acme/lora/../x", None, ErrorCode.UNSAFE_FILE),
        ("hf://acme/lora/pickled", None, ErrorCode.UNSAFE_FILE),
    ],
)
def test_what_is_not_there_or_unsafe(reader: Reader, uri: str, revision: str | None, code: ErrorCode) -> None:
    assert reader.refused(uri, revision).code is code


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, ErrorCode.UNAUTHORIZED),
        (403, ErrorCode.UNAUTHORIZED),
        (404, ErrorCode.NOT_FOUND),
        (429, ErrorCode.SOURCE_UNAVAILABLE),
        (503, ErrorCode.SOURCE_UNAVAILABLE),
    ],
)
def test_refusals_have_a_type(reader: Reader, status: int, code: ErrorCode) -> None:
    reader.server.statuses = [status] * hub.ATTEMPTS
    assert reader.refused().code is code


def test_a_short_fault_is_waited_out(reader: Reader) -> None:
    reader.server.statuses = [503, 429]
    assert reader.copy().revision == COMMIT


def test_the_token_is_read_anew_and_named_nowhere(reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    reader.server.token = "hf_right"
    assert "declare a source" in reader.refused().message
    reader.give_token("hf_wrong\n")
    error = reader.refused()
    assert error.code is ErrorCode.UNAUTHORIZED
    reader.give_token("hf_right\n")
    assert reader.copy().revision == COMMIT
    assert "hf_" not in error.message + caplog.text


def test_a_secret_without_a_token_is_told(reader: Reader) -> None:
    reader.secret.mkdir()
    error = reader.refused()
    assert error.code is ErrorCode.UNAUTHORIZED
    assert "`token`" in error.message
    assert reader.server.requests == []


def test_a_redirect_takes_no_token_along(reader: Reader, elsewhere: FakeHub) -> None:
    reader.give_token("hf_right")
    reader.server.token, reader.server.cdn = "hf_right", elsewhere.url
    assert reader.copy().revision == COMMIT
    assert elsewhere.requests
    assert not any("Authorization" in headers for _, headers in elsewhere.requests)


def test_a_hub_on_a_private_address_must_be_allowed(reader: Reader) -> None:
    error = reader.refused(allowed=())
    assert error.code is ErrorCode.SOURCE_NOT_DECLARED
    assert "allowedNetworks" in error.message
    assert reader.server.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not GuardedBackend((), public=True).permits(ipaddress.ip_address(address))


def test_public_addresses_need_tls() -> None:
    for address in ("8.8.8.8", "2606:4700::1111"):
        assert GuardedBackend((), public=True).permits(ipaddress.ip_address(address))
        assert not GuardedBackend((), public=False).permits(ipaddress.ip_address(address))
