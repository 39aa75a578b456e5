"""A server on loopback that speaks as much of the Hub's API as is called, and fails on demand."""

from __future__ import annotations

import datetime
import hashlib
import json
import ssl
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass
class Asked:
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""


Answer = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, **headers: str) -> Answer:
    """An answer without a body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def cut(content: bytes, after: int, tag: str | None = None) -> Answer:
    """The start of a file, then the connection's end."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("ETag", tag or f'"{hashlib.md5(content).hexdigest()}"')
        handler.end_headers()
        handler.wfile.write(content[:after])
        handler.close_connection = True

    return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is what some tests are about."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Origin:
    """One HTTP server on loopback; with a certificate, HTTPS on localhost."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.files: dict[str, bytes] = {}
        """By path."""
        self.redirects: dict[str, str] = {}
        self.headers: dict[str, dict[str, str]] = defaultdict(dict)
        """Beside the usual ones, by path."""
        self.faults: dict[str, list[Answer]] = defaultdict(list)
        """By path: what answers the next requests instead of the file."""
        self.asked: list[Asked] = []
        self.token: str | None = None
        """Without it everything is 401."""
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._host = "http://127.0.0.1"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._host = "https://localhost"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.stopping = threading.Event()
        """Set at the end: an answer that dawdles must stop then."""

    @property
    def url(self) -> str:
        return f"{self._host}:{self._server.server_port}"

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def paths(self, part: str = "") -> list[str]:
        """What was asked for with GET, in order, where it contains `part`."""
        return [asked.path for asked in self.asked if asked.method == "GET" and part in asked.path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.asked.append(Asked(handler.command, path, headers))
        if self.faults[path]:
            self.faults[path].pop(0)(handler)
        elif self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            status(401)(handler)
        elif path in self.redirects:
            status(302, Location=self.redirects[path], **self.headers[path])(handler)
        elif path in self.files:
            _send_file(handler, self.files[path], self.headers[path])
        else:
            status(404, **{"X-Error-Code": "EntryNotFound"})(handler)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                origin.answer(self)

            def do_HEAD(self) -> None:
                origin.answer(self)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        return Handler

    # Other modules of tests reach the answers through a server.
    status = staticmethod(status)
    cut = staticmethod(cut)


def _send_file(handler: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str]) -> None:
    tag = headers.get("ETag", f'"{hashlib.md5(content).hexdigest()}"')
    asked = handler.headers.get("Range", "")
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
    if start and handler.headers.get("If-Range", tag) == tag:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        start = 0
        handler.send_response(200)
    for name, value in {"ETag": tag, "Content-Length": str(len(content) - start), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(content[start:])


class Hub(Origin):
    """The Hub: model info, files at a commit, large ones by a redirect to another host."""

    commit, later = "a" * 40, "b" * 40
    config = b'{"peft_type": "LORA"}'
    weights = bytes(range(256)) * 2048
    """Half a MiB: several pieces."""

    def __init__(self, cdn: Origin) -> None:
        super().__init__()
        self.cdn = cdn

    def put(self, repository: str, commit: str, files: dict[str, bytes], *revisions: str) -> None:
        """Adds a commit; `revisions` point to it."""
        siblings: list[dict[str, Any]] = []
        for path, content in files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _blob(content)}
            resolved = f"/{repository}/resolve/{commit}/{path}"
            self.headers[resolved] = {"X-Repo-Commit": commit}
            if path.endswith(".safetensors"):
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
                self.headers[resolved] |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content))}
                self.redirects[resolved] = f"{self.cdn.url}/{sha}"
                self.cdn.files[f"/{sha}"] = content
            else:
                self.headers[resolved]["ETag"] = f'"{_blob(content)}"'
                self.files[resolved] = content
            siblings.append(entry)
        info = {"id": repository, "sha": commit, "private": False, "siblings": siblings, "tags": [], "downloads": 0}
        for revision in (commit, *revisions):
            self.files[self.info_path(repository, revision)] = json.dumps(info).encode()

    def info_path(self, repository: str, revision: str) -> str:
        return f"/api/models/{repository}/revision/{revision}"

    @property
    def weights_path(self) -> str:
        """On the other host."""
        return f"/{hashlib.sha256(self.weights).hexdigest()}"


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def cdn() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture
def hub(cdn: Origin) -> Iterator[Hub]:
    """`acme/sql` at two commits; `acme/shelf` with an adapter in a folder."""
    hub = Hub(cdn)
    files = {"adapter_config.json": hub.config, "adapter_model.safetensors": hub.weights, "README.md": b"words"}
    pickled = {"adapter_model.bin": b"pickle", "training_args.bin": b"pickle"}
    hub.put("acme/sql", hub.commit, {**files, **pickled}, "v1")
    hub.put("acme/sql", hub.later, {**files, "adapter_model.safetensors": hub.weights[::-1]}, "main")
    hub.put("acme/shelf", hub.commit, {f"deep/sql/{name}": content for name, content in files.items()}, "main")
    yield hub
    hub.close()


def make_certificate(directory: Path) -> Path:
    """Write key and certificate of `localhost`, signed by itself, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / "localhost.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + made.public_bytes(pem))
    return file


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of `localhost`, signed by itself."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def web(certificate: Path) -> Iterator[Origin]:
    """A server of archives, by HTTPS."""
    origin = Origin(certificate)
    yield origin
    origin.close()
