"""Probes and metrics, served outside kopf so that they answer whatever it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from graft_operator import metrics

SHUTDOWN_SECONDS = 1.0


class HealthServer:
    """GET /livez /readyz /metrics.

    Args:
        alive: whether the process does its work; a restart helps where it does not.
        ready: whether the operator has seen the cluster.
    """

    def __init__(self, address: str, port: int, *, alive: Callable[[], bool], ready: Callable[[], bool]) -> None:
        self._address = address
        self._port = port
        application = web.Application()
        application.router.add_get("/livez", _probe(alive))
        application.router.add_get("/readyz", _probe(ready))
        application.router.add_get("/metrics", _metrics)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address is taken.
        """
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address, self._port).start()

    async def close(self) -> None:
        await self._runner.cleanup()


def _probe(holds: Callable[[], bool]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if holds() else web.Response(status=503, text="not yet\n")

    return answer


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
