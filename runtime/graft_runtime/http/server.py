"""The API process from start to end: three ports, the engine process, and a decent way to leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp

from graft_runtime.answering.admission import Admission
from graft_runtime.answering.checker import Checker
from graft_runtime.answering.generation import Generator
from graft_runtime.answering.models import Models
from graft_runtime.answering.vocabularies import Vocabularies
from graft_runtime.contract.config import RUNTIME_CONFIG_FILE, RuntimeConfig
from graft_runtime.contract.ports import API_PORT, CONTROL_PORT, PROBE_PORT
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.api_keys import ApiKeys
from graft_runtime.http.app import api_app, control_app, probe_app
from graft_runtime.http.connections import Connection
from graft_runtime.http.generations import Generations
from graft_runtime.memory import collect_what_comes_alone
from graft_runtime.pod.adapters import NamedAdapters
from graft_runtime.pod.answer_checks import CHECKS_AT_ONCE
from graft_runtime.pod.engine_port import EnginePort
from graft_runtime.pod.pod import Places, Pod

logger = logging.getLogger(__name__)

EXIT_DONE = 0
EXIT_ENGINE_GONE = 3
EXIT_BROKEN = 4
QUIET_SECONDS = 5.0
"""After SIGTERM: so long nobody asked, before this pod ends; who routes here may not have heard that it is unready."""
LAST_SECONDS = 0.5
"""From the last connection that is taken to the end: whoever has connected by then may still ask."""
CLOSING_SECONDS = 3
KEEP_ALIVE_SECONDS = 75
BACKLOG = 1024
PORTS = ("control port", "API port", "probe port")
MAX_CONNECTIONS = 1024
"""Of each port."""
WANTED_FILES = 4 * MAX_CONNECTIONS


def read_config(directory: Path) -> RuntimeConfig:
    """Read a pod's config. Raises GraftError: InvalidSpec, UnsupportedContractVersion."""
    path = directory / RUNTIME_CONFIG_FILE
    try:
        return RuntimeConfig.read(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise GraftError(ErrorCode.INVALID_SPEC, f"{path} holds no RuntimeConfig: {error}") from error


async def serve(config: RuntimeConfig, places: Places, uid: str, address: str, engine: Callable[[], EnginePort]) -> int:
    """Serve until SIGTERM or until the engine ends.

    Args:
        address: to bind the ports to.
        engine: makes the engine that runs the base model and the adapters.

    Returns:
        The exit status.
    """
    sockets = [listen(address, port) for port in (CONTROL_PORT, API_PORT, PROBE_PORT)]
    pod = Pod(config, places, uid, engine())
    models = Models(config.served_name, pod.adapters, composition=config.composition)
    admission = Admission(config.engine.max_sequences, pod.adapters.share)
    vocabularies = Vocabularies(pod.engine.send)
    generator = Generator(
        models,
        pod.adapters,
        pod.base,
        pod.engine.submit,
        vocabularies,
        admission=admission,
        lent=pod.metrics.lent,
    )
    pod.adapters.answer_checks(partial(_checker, pod, vocabularies))
    generations = Generations(generator, models, pod.metrics)
    keys = ApiKeys(places.api_keys) if places.api_keys is not None else None
    servers = [
        _server(app)
        for app in (
            control_app(pod),
            api_app(pod, models, generations, generator, keys),
            probe_app(pod, lambda: admission.names),
        )
    ]
    ports = {
        name: _task(server.serve([listening])) for name, server, listening in zip(PORTS, servers, sockets, strict=True)
    }
    tasks = {
        **ports,
        "engine": _task(pod.engine.run()),
        "pod": _task(pod.run()),
        **({"keys": _task(keys.follow())} if keys is not None else {}),
    }
    collect_what_comes_alone()
    try:
        status = await _until_the_end(tasks)
        if status is None:
            await _drain(pod, admission, servers[1], tasks["engine"])
            status = EXIT_DONE
        return status
    finally:
        admission.refusing = True
        generations.end_all(GraftError(ErrorCode.SHUTTING_DOWN, "this pod is going away", hint="try again"))
        await pod.close()
        for server in servers:
            server.should_exit = True
        await asyncio.wait(ports.values(), timeout=CLOSING_SECONDS + 1)
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


def _checker(pod: Pod, vocabularies: Vocabularies, checked: NamedAdapters) -> Checker:
    """Return what asks adapters that are checked: beside the clients' requests, and counted apart from them."""
    return Checker(
        Generator(
            Models(pod.config.served_name, checked, composition=False),
            checked,
            pod.base,
            pod.engine.submit,
            vocabularies,
            admission=Admission(CHECKS_AT_ONCE),
            lent=lambda tier, seconds: None,
        )
    )


async def _until_the_end(tasks: dict[str, asyncio.Task[Any]]) -> int | None:
    """Return the exit status, or None when SIGTERM asks for a decent end."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    waiting = _task(asked.wait())
    await asyncio.wait([waiting, *tasks.values()], return_when=asyncio.FIRST_COMPLETED)
    if asked.is_set():
        return None
    waiting.cancel()
    name, task = next((name, task) for name, task in tasks.items() if task.done())
    if name == "engine" and task.exception() is None:
        status = task.result()
        known = f" with status {status}" if status is not None else ""
        logger.critical("the engine process ended%s; this process ends as well", known)
        return EXIT_ENGINE_GONE
    logger.critical("the %s broke; this process ends", name, exc_info=task.exception())
    return EXIT_BROKEN


async def _drain(pod: Pod, admission: Admission, server: _Server, engine: asyncio.Task[int | None]) -> None:
    """Be unready, but go on serving until nobody asks here any more; then, at the latest, cut off what still runs.

    From the first moment on, every answer says that its connection closes, so that clients turn to other pods. Whoever
    has not heard yet that this pod is going is answered: where others can't be reached, no other pod would.
    """

    async def nobody_asks() -> None:
        await admission.wait_quiet(QUIET_SECONDS)
        server.stop_listening()
        await admission.wait_quiet(LAST_SECONDS)

    logger.info("asked to end: %d requests are on their way", admission.in_flight)
    pod.leave()
    quiet, closing = _task(nobody_asks()), _task(server.close_idle(QUIET_SECONDS))
    await asyncio.wait([engine, quiet], timeout=pod.config.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
    quiet.cancel()
    closing.cancel()
    if admission.in_flight:
        logger.warning("%d requests are cut off", admission.in_flight)


def _task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work)


def listen(address: str, port: int) -> socket.socket:
    """Return a listening socket whose connections send small answers at once: Nagle would hold them back for 40 ms."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, port), family=family, backlog=BACKLOG)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not see that this is TCP
    return listening


class _Server(uvicorn.Server):
    """Leaves the signals alone: the pod decides when its ports close."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_listening(self) -> None:
        """Take no more connections; those that are open stay so."""
        for listening in self.servers:
            listening.close()

    async def close_idle(self, seconds: float) -> None:
        """Close the connections on which nothing was asked for `seconds`, for ever.

        Those that have just been opened, or have just had an answer, are left open: a request may be on its way.
        """
        before: dict[Any, Any] = {}
        while True:
            last = {connection: getattr(connection, "cycle", None) for connection in self.server_state.connections}
            idle: dict[Any, Any] = {
                one: cycle for one, cycle in last.items() if cycle is None or cycle.response_complete
            }
            for connection, cycle in idle.items():
                if connection in before and before[connection] is cycle:
                    connection.shutdown()
            before = idle
            await asyncio.sleep(seconds)


def _connections() -> int:
    """Return how many connections a port may have, so that there are descriptors for all ports and for files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < WANTED_FILES:
        soft = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft // 4)


def _server(app: ASGIApp) -> _Server:
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        http=Connection,
        limit_concurrency=1 + _connections(),
    )
    return _Server(config)
