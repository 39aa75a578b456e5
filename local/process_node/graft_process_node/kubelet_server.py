"""The part of a kubelet's HTTPS API that `kubectl logs` needs, for callers with a certificate of the cluster's CA."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from graft_process_node.log_reading import LogRequest, LogRequestError, existing_lines, follow_lines
from graft_process_node.pod_status import ContainerRecord

_CERTIFICATE_DAYS = 3650


@dataclass(frozen=True)
class LoggedContainer:
    """A container whose log can be read; its log files are DIRECTORY/RESTARTCOUNT.log."""

    record: ContainerRecord
    directory: Path


Lookup = Callable[[str, str, str], LoggedContainer | None]
"""From namespace, pod and container."""


class KubeletServer:
    """Serves `/containerLogs/NAMESPACE/POD/CONTAINER` and `/healthz`."""

    def __init__(self, address: str, port: int, certificate_authority: bytes, lookup: Lookup) -> None:
        self._address = address
        self._port = port
        self._certificate_authority = certificate_authority
        self._lookup = lookup

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Serve while in the context; the port.

        Raises:
            OSError: the port is taken.
        """
        application = web.Application()
        application.router.add_get("/healthz", _healthy)
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        application.router.add_route("*", "/{rest:.*}", _unsupported)
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            tls = _serving_context(self._address, self._certificate_authority)
            site = web.TCPSite(runner, self._address, self._port, ssl_context=tls)
            await site.start()
            yield int(runner.addresses[0][1])
        finally:
            await runner.cleanup()

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        where = request.match_info
        found = self._lookup(where["namespace"], where["pod"], where["container"])
        if found is None:
            return web.Response(status=404, text=f"container {where['container']} not found in pod {where['pod']}")
        try:
            asked = LogRequest.of(request.query, datetime.now(UTC))
            log, run = _chosen_log(found, asked, f'container "{where["container"]}" in pod "{where["pod"]}"')
        except LogRequestError as error:
            return web.Response(status=400, text=str(error))
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        left = asked.limit_bytes
        async for line in _lines(log, asked, found.record, run):
            await response.write(line if left is None else line[:left])
            left = None if left is None else max(0, left - len(line))
            if left == 0:
                break
        await response.write_eof()
        return response


async def _lines(log: Path, asked: LogRequest, record: ContainerRecord, run: int) -> AsyncIterator[bytes]:
    if asked.follow:
        follow = follow_lines(log, asked, lambda: record.restart_count != run or "running" not in record.state)
        async for line in follow:
            yield line
    else:
        for line in existing_lines(log, asked):
            yield line


def _chosen_log(found: LoggedContainer, asked: LogRequest, named: str) -> tuple[Path, int]:
    record = found.record
    if asked.previous:
        if record.restart_count == 0:
            raise LogRequestError(f"previous terminated {named} not found")
        run = record.restart_count - 1
    else:
        run = record.restart_count
        if "waiting" in record.state and "terminated" not in record.last_state:
            raise LogRequestError(f"{named} is waiting to start: {record.state['waiting']['reason']}")
    return found.directory / f"{run}.log", run


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _unsupported(request: web.Request) -> web.Response:
    kind = request.path.strip("/").partition("/")[0]
    return web.Response(status=501, text=f"`{kind}` is not supported by this node: its pods are plain processes")


def _serving_context(address: str, certificate_authority: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=certificate_authority.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    with tempfile.NamedTemporaryFile() as both:  # `ssl` takes it from a file only
        both.write(_self_signed(address))
        both.flush()
        context.load_cert_chain(both.name)
    return context


def _self_signed(address: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "process-node")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
