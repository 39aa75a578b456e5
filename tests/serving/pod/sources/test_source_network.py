"""Which addresses a source may have, and that what was checked is what is connected to."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from graft_runtime.errors import GraftError
from graft_runtime.store.network import AddressGuard, Pace, make_client, parse_network, proxy_of_environment


class Proxy(socketserver.ThreadingTCPServer):
    """Opens tunnels to this machine, whatever host is asked for; `asked` are the hosts with their ports."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Tunnel(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        host = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        self.server.asked.append(host)
        with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2]))) as origin:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ends = {self.connection: origin, origin: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    with contextlib.suppress(OSError):
                        if piece := end.recv(65536):
                            ends[end].sendall(piece)
                            continue
                    return


PACE = Pace(silent_seconds=2.0)
LOOPBACK = AddressGuard([parse_network("127.0.0.0/8")])


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\nX-More: "])
def test_an_answer_that_begins_byte_by_byte_is_not_waited_for(before: bytes) -> None:
    ended = threading.Event()

    def dawdle() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(before)
            while not ended.wait(0.02):
                with contextlib.suppress(OSError):
                    connection.sendall(b"x" if before else b"\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=dawdle)
        server.start()
        with (
            make_client(LOOPBACK, Pace(silent_seconds=0.3)) as client,
            pytest.raises(httpx2.HTTPError),
            client.stream("GET", f"http://127.0.0.1:{listening.getsockname()[1]}/"),
        ):
            pass
        ended.set()
        server.join()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authorities_that_can_t_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(GraftError, match=str(file)) as refused:
        make_client(LOOPBACK, PACE)
    assert refused.value.code == "InvalidPodTemplate"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
        ("192.0.0.192", False),
        ("224.0.0.1", False),
        ("239.255.255.250", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00:ec2::254", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:1.1.1.1", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::101:101", True),
        ("2002:7f00:1::1", False),
        ("2002:a9fe:a9fe::1", False),
        ("::127.0.0.1", False),
        ("2001:db8::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert AddressGuard().permits(ipaddress.ip_address(address)) is public


def test_what_the_administrator_allows_is_permitted_and_nothing_beside() -> None:
    guard = AddressGuard([parse_network("10.1.0.0/16"), parse_network("fd00::/8")])
    allowed = ["10.1.2.3", "fd00:ec2::254", "::ffff:10.1.2.3", "1.1.1.1"]
    assert all(guard.permits(ipaddress.ip_address(address)) for address in allowed)
    assert not any(guard.permits(ipaddress.ip_address(address)) for address in ("10.2.0.1", "169.254.169.254", "::1"))


def resolver(*answers: list[str]) -> Any:
    """Of host names: each look-up gets the next answer."""
    left = list(answers)

    def look_up(_: str, port: int, **__: Any) -> list[Any]:
        found = left.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return look_up


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254/latest/meta-data",
        "https://[fd00:ec2::254]/",
        "https://[::ffff:169.254.169.254]/",
        "https://[fe80::1%25eth0]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://017700000001/",
        "http://1.1.1.1/",
        "ftp://1.1.1.1/",
    ],
)
def test_an_address_in_a_url_is_checked(url: str) -> None:
    with make_client(AddressGuard(), PACE) as client, pytest.raises((GraftError, httpx2.HTTPError)) as caught:
        client.get(url)
    if isinstance(caught.value, GraftError):
        assert caught.value.code in {"ForbiddenAddress", "SourceUnavailable"}
    else:
        assert isinstance(caught.value, httpx2.UnsupportedProtocol)


def test_the_addresses_of_a_name_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolver(["10.0.0.1", "169.254.169.254"]))
    with make_client(AddressGuard(), PACE) as client, pytest.raises(GraftError) as caught:
        client.get("https://models.example/")
    assert caught.value.code == "ForbiddenAddress"
    assert "10.0.0.1, 169.254.169.254" in caught.value.message


def test_a_name_is_looked_up_once_for_a_connection(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second answer, which points elsewhere, is never asked for."""
    real, names = socket.getaddrinfo, []

    def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host != "models.example":
            return real(host, port, *rest, **more)
        names.append(host)
        return resolver(["127.0.0.1"])(host, port)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    port = hub.url.rpartition(":")[2]
    hub.files["/x"] = b"content"
    with make_client(LOOPBACK, PACE) as client:
        answer = client.get(f"http://models.example:{port}/x")
    assert answer.content == b"content"
    assert hub.asked[0].headers["host"] == f"models.example:{port}"
    assert names == ["models.example"]


def test_the_next_address_is_tried_where_one_is_away(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host == "models.example":
            return resolver(["127.0.0.9", "127.0.0.1"])(host, port)
        return real(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    hub.files["/x"] = b"content"
    with make_client(LOOPBACK, PACE) as client:
        assert client.get(f"http://models.example:{hub.url.rpartition(':')[2]}/x").content == b"content"


def test_plain_http_goes_through_no_proxy(hub: Any) -> None:
    hub.files["/x"] = b"content"
    with make_client(LOOPBACK, PACE, proxy="http://127.0.0.1:9") as client:
        assert client.get(f"{hub.url}/x").content == b"content"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """As the pod's environment names it."""
    for name in ("HTTPS_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Proxy() as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.server_address[1]}")
        yield proxy


def ask(url: str, *hosts: str) -> bytes:
    with make_client(AddressGuard(hosts=hosts), PACE, proxy=proxy_of_environment()) as client:
        return client.get(url).content


def test_https_goes_through_the_proxy_that_looks_names_up(
    web: Any, certificate: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is checked on the way through it; a redirect goes through it as well."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    port = web.url.rpartition(":")[2]
    web.files["/x"] = b"content"
    web.redirects["/old"] = f"https://localhost:{port}/x"
    assert ask(f"https://localhost:{port}/old", "localhost", f"localhost:{port}") == b"content"
    assert proxy.asked == [f"localhost:{port}"] * 2
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(httpx2.ConnectError, match="CERTIFICATE"):
        ask(f"https://localhost:{port}/x")


def test_hosts_of_no_proxy_are_asked_past_it_and_checked(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", ".cluster.local,localhost")
    with pytest.raises(GraftError, match="not public"):
        ask("https://localhost/x")
    assert proxy.asked == []


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fd00:ec2::254]", "2130706433", "0x7f.1", "127.1", "other.example"]
)
def test_what_a_proxy_may_not_be_asked_for(proxy: Proxy, host: str) -> None:
    with pytest.raises((GraftError, httpx2.UnsupportedProtocol)) as refused:
        ask(f"https://{host}/", "models.example", *([] if host == "other.example" else [host.strip("[]")]))
    assert isinstance(refused.value, GraftError)
    assert refused.value.code == "ForbiddenAddress"
    assert proxy.asked == []


def test_a_proxy_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "ftp://proxy:80")
    with pytest.raises(GraftError, match="HTTPS_PROXY"):
        ask("https://models.example/")
