"""Probes and lifecycle hooks: asking a container how it is."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from graft_process_node.container_process import StartError, run_to_end
from graft_process_node.expansion import expand
from graft_process_node.process_spec import ProcessSpec

_BODY_SHOWN = 256


@dataclass(frozen=True)
class ProbeTarget:
    """A running container, as its probes and hooks see it."""

    container: Mapping[str, Any]
    process: ProcessSpec
    pod_ip: str
    marker: str


@dataclass(frozen=True)
class ProbeAnswer:
    """Whether it succeeded, and what to tell when it did not."""

    success: bool
    message: str = ""


async def ask(handler: Mapping[str, Any], target: ProbeTarget, timeout_seconds: float) -> ProbeAnswer:
    """Run a probe's or hook's handler once; never raises but for cancellation."""
    if handler.get("httpGet"):
        return await _http_get(handler["httpGet"], target, timeout_seconds)
    if handler.get("tcpSocket"):
        return await _tcp_connect(handler["tcpSocket"], target, timeout_seconds)
    if handler.get("exec"):
        return await _execute(handler["exec"], target, timeout_seconds)
    if handler.get("sleep"):
        await asyncio.sleep(min(float(handler["sleep"]["seconds"]), timeout_seconds))
    return ProbeAnswer(True)


def port_number(container: Mapping[str, Any], port: int | str) -> int | None:
    """The number of a port that is given by number or by name."""
    if isinstance(port, int) or port.isdigit():
        return int(port)
    return next((one["containerPort"] for one in container.get("ports") or [] if one.get("name") == port), None)


async def _http_get(get: Mapping[str, Any], target: ProbeTarget, timeout_seconds: float) -> ProbeAnswer:
    port = port_number(target.container, get["port"])
    if port is None:
        return ProbeAnswer(False, f"the container has no port named `{get['port']}`")
    scheme = (get.get("scheme") or "HTTP").lower()
    path = get.get("path") or "/"
    url = f"{scheme}://{get.get('host') or target.pod_ip}:{port}{path if path.startswith('/') else '/' + path}"
    headers = {"User-Agent": "kube-probe/1.34", "Accept": "*/*", "Connection": "close"}
    headers.update({one["name"]: one["value"] for one in get.get("httpHeaders") or []})
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    unverified = ssl._create_unverified_context() if scheme == "https" else True  # noqa: S323 - as a kubelet does
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, headers=headers, allow_redirects=False, ssl=unverified) as response,
        ):
            if 200 <= response.status < 400:
                return ProbeAnswer(True)
            body = (await response.content.read(_BODY_SHOWN)).decode(errors="replace")
            return ProbeAnswer(False, f"HTTP probe failed with statuscode: {response.status} {body}".rstrip())
    except TimeoutError:
        return ProbeAnswer(False, f'Get "{url}": no answer within {timeout_seconds:g} s')
    except aiohttp.ClientConnectorError as error:
        return ProbeAnswer(False, f'Get "{url}": {error.os_error.strerror}')
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return ProbeAnswer(False, f'Get "{url}": {error}')


async def _tcp_connect(socket: Mapping[str, Any], target: ProbeTarget, timeout_seconds: float) -> ProbeAnswer:
    port = port_number(target.container, socket["port"])
    if port is None:
        return ProbeAnswer(False, f"the container has no port named `{socket['port']}`")
    host = socket.get("host") or target.pod_ip
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection(host, port)
    except (TimeoutError, OSError) as error:
        return ProbeAnswer(False, f"dial tcp {host}:{port}: {error or 'timeout'}")
    writer.close()
    return ProbeAnswer(True)


async def _execute(command: Mapping[str, Any], target: ProbeTarget, timeout_seconds: float) -> ProbeAnswer:
    process = target.process
    words = tuple(process.mounts.rewrite(expand(word, process.environment)) for word in command["command"])
    try:
        ending = await run_to_end(
            words, process.environment, process.directory, marker=target.marker, seconds=timeout_seconds
        )
    except TimeoutError:
        return ProbeAnswer(False, f"command {list(words)} took longer than {timeout_seconds:g} s")
    except StartError as error:
        return ProbeAnswer(False, f"command {list(words)}: {error}")
    return ProbeAnswer(ending.exit_code == 0, ending.output.strip() or f"exit code {ending.exit_code}")
