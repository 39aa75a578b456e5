"""Connections to hubs: which addresses a name may lead to, and for how long one waits."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence

import httpcore2
import httpx2

from graft_runtime.errors import ErrorCode, GraftError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def make_client(allowed: Sequence[Network]) -> httpx2.Client:
    """A client that reaches public addresses by https, and those in `allowed` by https or http.

    It follows no redirect by itself and asks the environment for no proxy, which would look names up in our stead.
    Requests raise httpx2.TransportError, or GraftError SourceNotDeclared for an address that is refused.
    """
    return httpx2.Client(
        mounts={
            "https://": _Transport(GuardedBackend(allowed, public=True)),
            "http://": _Transport(GuardedBackend(allowed, public=False)),
        },
        timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=False,
        trust_env=False,
    )


class _Transport(httpx2.HTTPTransport):
    def __init__(self, backend: httpcore2.NetworkBackend) -> None:
        context = httpx2.create_ssl_context()
        super().__init__(verify=context)
        self._pool = httpcore2.ConnectionPool(ssl_context=context, network_backend=backend)


class GuardedBackend(httpcore2.NetworkBackend):
    """Looks names up itself and connects to the very address that it has checked."""

    def __init__(self, allowed: Sequence[Network], *, public: bool) -> None:
        self._allowed = allowed
        self._public = public
        self._backend = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.NetworkStream:
        """Raises httpcore2.ConnectError, httpcore2.ConnectTimeout, GraftError: SourceNotDeclared."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"the name {host} can't be looked up: {error}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        permitted = [address for address in addresses if self.permits(ipaddress.ip_address(address))]
        if not permitted:
            raise self._refusal(host, addresses)
        failure: httpcore2.ConnectError | httpcore2.ConnectTimeout | None = None
        for address in permitted:
            try:
                return self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError(host)

    def permits(self, address: Address) -> bool:
        """Whether a connection to this address may be made."""
        inner = _embedded(address)
        if any(inner in network for network in self._allowed):
            return True
        return self._public and inner.is_global and not inner.is_multicast

    def _refusal(self, host: str, addresses: Sequence[str]) -> GraftError:
        kind = "reached without https" if not self._public else "no public address"
        return GraftError(
            ErrorCode.SOURCE_NOT_DECLARED,
            f"the host `{host}` ({', '.join(addresses)}) is {kind}, and the administrator does not allow its network",
            hint="use an https endpoint with a public address, or have the chart's value allowedNetworks extended",
        )


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
