"""HTTP for the store: every connection goes to an address that was checked, also after a redirect."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx2

from graft_runtime.backoff import Backoff
from graft_runtime.contract.schemes import host_is_allowed
from graft_runtime.errors import ErrorCode, GraftError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0
"""How long a source may say nothing."""
MAX_REDIRECTS = 5
PAUSES = Backoff(first_seconds=0.5, longest_seconds=8.0)
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Public addresses by their range, yet they answer inside a cloud's network only.
_CLOUD_NETWORKS = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Pace:
    """What a source must at least deliver."""

    silent_seconds: float = SILENT_SECONDS
    """The longest pause between two pieces, and the most until the head of an answer is whole."""
    free_seconds: float = 60.0
    """That a file may take whatever its size."""
    bytes_per_second: int = 128 << 10
    """The least rate beyond that, from the file's first byte on."""
    tries: int = 8
    """Connections in a row that bring nothing before we give up; the whole download is then tried again, later."""
    pauses: Backoff = PAUSES
    """Between them."""

    def seconds_for(self, size: int) -> float:
        """Return the most seconds that so many bytes may take."""
        return self.free_seconds + size / self.bytes_per_second


DEFAULT_PACE = Pace()


class AddressGuard:
    """Tells addresses that a source may have from those of this node, this cluster and this cloud.

    Args:
        allowed: networks beside the public ones, by the administrator.
        hosts: his list of hosts; empty for any.
    """

    def __init__(self, allowed: Iterable[Network] = (), hosts: Iterable[str] = ()) -> None:
        self._allowed, self._hosts = tuple(allowed), tuple(hosts)

    def addresses(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a host that we may connect to.

        Raises:
            GraftError: SourceUnavailable where its name has no address, ForbiddenAddress where it has only others, or
                is none of the hosts that are allowed.
        """
        self._check_listed(host)
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise GraftError(
                ErrorCode.SOURCE_UNAVAILABLE, f"the host `{host}` has no address: {error}", hint="it is tried again"
            ) from error
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
        return self._permitted(host, addresses)

    def check_unresolved(self, host: str) -> None:
        """Check a host that a proxy looks up: its name, or the address that it is in any notation.

        Raises:
            GraftError: ForbiddenAddress.
        """
        self._check_listed(host)
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            try:
                address = ipaddress.ip_address(socket.inet_aton(host))
            except (OSError, UnicodeError):
                return
        self._permitted(host, [address])

    def _permitted(self, host: str, addresses: Sequence[Address]) -> list[Address]:
        permitted = [address for address in dict.fromkeys(addresses) if self.permits(address)]
        if not permitted:
            shown = ", ".join(sorted({str(address) for address in addresses}))
            raise GraftError(
                ErrorCode.FORBIDDEN_ADDRESS,
                f"the host `{host}` has the address {shown}, which is not public",
                hint="have the administrator add its network to the chart's value allowedNetworks",
            )
        return permitted

    def _check_listed(self, host: str) -> None:
        if self._hosts and not host_is_allowed(host, self._hosts):
            raise GraftError(
                ErrorCode.FORBIDDEN_ADDRESS,
                f"the host `{host}` is none of those that the administrator allows ({', '.join(self._hosts)})",
                hint="have the administrator add it to the chart's value allowedEndpoints; files of the Hub come from"
                " other hosts than its pages, by redirects",
            )

    def permits(self, address: Address) -> bool:
        """Tell whether a source may have this address."""
        return self.is_allowed(address) or all(_is_public(meant) for meant in _meanings(address))

    def is_allowed(self, address: Address) -> bool:
        """Tell whether the administrator named a network that holds this address."""
        return all(any(meant in network for network in self._allowed) for meant in _meanings(address))


def _meanings(address: Address) -> list[Address]:
    """Return the address reached in the end, and the address that leads there where the latter is another host's."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)]
    inner = address.sixtofour or (address.teredo[1] if address.teredo else None)
    return [address, inner] if inner else [address]


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _CLOUD_NETWORKS)


class GuardedTransport(httpx2.BaseTransport):
    """Resolves a host once, checks what it found, and connects to exactly that: no second look-up can differ.

    Plain http is for networks that the administrator allows; the certificate is that of the host's name.

    Args:
        guard: tells which addresses a source may have.
        head_seconds: that an answer's head may take, however little of it comes at a time.
        proxy: URL of the one that https goes through, but for the hosts of NO_PROXY; it looks names up itself.
    """

    def __init__(self, guard: AddressGuard, head_seconds: float, proxy: str | None = None) -> None:
        self._guard, self._head_seconds = guard, head_seconds
        # A connection to an address must not serve two hosts: its certificate was checked for one of them.
        limits = httpx2.Limits(max_connections=64, max_keepalive_connections=0)
        try:
            self._inner = httpx2.HTTPTransport(limits=limits)
            self._by_proxy = httpx2.HTTPTransport(limits=limits, proxy=proxy) if proxy is not None else None
        except OSError as error:  # that of a missing file does not name it
            file = os.environ.get("SSL_CERT_FILE")
            raise GraftError(
                ErrorCode.INVALID_POD_TEMPLATE,
                f"the authorities to trust can't be read from SSL_CERT_FILE=`{file}`: {error}",
                hint="mount a file of PEM certificates by spec.podTemplate, and set the variable to its path",
            ) from error
        except (ValueError, httpx2.InvalidURL) as error:
            raise GraftError(
                ErrorCode.INVALID_POD_TEMPLATE,
                f"HTTPS_PROXY is no URL of a proxy: {error}",
                hint="expected http://HOST:PORT, in the chart's value podDefaults",
            ) from error

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to a checked address of its host.

        Raises:
            GraftError: ForbiddenAddress, SourceUnavailable.
            httpx2.TransportError: the connection failed.
        """
        url = request.url
        if url.scheme not in _DEFAULT_PORTS:
            _refuse(url, "has a scheme other than https")
        if self._by_proxy is not None and url.scheme == "https" and not urllib.request.proxy_bypass(url.host):
            self._guard.check_unresolved(url.host)
            return self._answer(self._by_proxy, request)
        addresses = self._guard.addresses(url.host, url.port or _DEFAULT_PORTS[url.scheme])
        if url.scheme == "http":
            addresses = [address for address in addresses if self._guard.is_allowed(address)]
            if not addresses:
                _refuse(url, "is plain http outside the networks that the administrator allows")
        return self._first_answer(request, addresses)

    def close(self) -> None:
        self._inner.close()
        if self._by_proxy is not None:
            self._by_proxy.close()

    def _first_answer(self, request: httpx2.Request, addresses: Sequence[Address]) -> httpx2.Response:
        for address in addresses[:-1]:
            try:
                return self._answer(self._inner, _pinned(request, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue
        return self._answer(self._inner, _pinned(request, addresses[-1]))

    def _answer(self, transport: httpx2.HTTPTransport, request: httpx2.Request) -> httpx2.Response:
        with _cut_after(self._head_seconds, request):
            return transport.handle_request(request)


def proxy_of_environment() -> str | None:
    """Return the URL of the proxy for https that the administrator has set in HTTPS_PROXY."""
    named = urllib.request.getproxies().get("https")
    return named if not named or "://" in named else f"http://{named}"


def make_client(
    guard: AddressGuard, pace: Pace, *, redirects: int = MAX_REDIRECTS, proxy: str | None = None
) -> httpx2.Client:
    """Make a client that follows redirects, each one checked, and leaves Authorization behind at another host.

    The environment's tokens and .netrc are not used, and no proxy but this one, for https.
    """
    return httpx2.Client(
        transport=GuardedTransport(guard, pace.silent_seconds, proxy),
        follow_redirects=redirects > 0,
        max_redirects=redirects,
        timeout=httpx2.Timeout(pace.silent_seconds, connect=min(CONNECT_SECONDS, pace.silent_seconds)),
        trust_env=False,
    )


@contextlib.contextmanager
def _cut_after(seconds: float, request: httpx2.Request) -> Iterator[None]:
    """Cut the connections that the request opens, once the block takes longer than so many seconds.

    A time-out of httpx is one for each read, which a source that sends byte by byte never reaches.
    """
    connections: list[socket.socket] = []

    def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            connections.append(info["return_value"].get_extra_info("socket").dup())

    def cut() -> None:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    request.extensions = {**request.extensions, "trace": trace}
    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for connection in connections:
            connection.close()


def parse_network(text: str) -> Network:
    """Parse a network in CIDR notation. Raises ValueError."""
    return ipaddress.ip_network(text)


def _pinned(request: httpx2.Request, address: Address) -> httpx2.Request:
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )


def _refuse(url: httpx2.URL, why: str) -> NoReturn:
    raise GraftError(
        ErrorCode.FORBIDDEN_ADDRESS,
        f"`{url.scheme}://{url.host}` {why}",
        hint="use https, or have the administrator add the network to the chart's value allowedNetworks",
    )
