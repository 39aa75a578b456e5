"""A runtime without a model that speaks the real contract: what the operator's tests put into pods.

Started like `graft-runtime serve …`. What a checkpoint does is written in its URI:

    …broken-base…   the base model fails for good       …missing…   can't be resolved: NotFound, until the file
    …misfit…        resolves, then fails its checks                  FLAGS/found exists
    …slow…          resolves, never gets ready
    …wide…          has rank 64, which engine.maxRank may be below
    …floods…        as a base: its pods answer polls without end
    …babbles…       as a base: they have news at each poll, of adapters that nobody named

    …moving…        holds other bytes once there is the file FLAGS/moved

FLAGS is the directory in the environment variable STUB_FLAGS (`at:DIRECTORY`, so that no node takes it for one of its
mounts): with FLAGS/hang no pod answers its control port.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import jwt
from aiohttp import web
from graft_runtime.contract.adapter_set import ADAPTER_SET_FILE, AdapterEntry, AdapterSet, AdapterSetVersion
from graft_runtime.contract.config import RUNTIME_CONFIG_FILE, Merge, RuntimeConfig
from graft_runtime.contract.control import (
    PUBLIC_KEY_SUFFIX,
    TOKEN_ALGORITHM,
    TOKEN_ISSUER,
    Accepted,
    Resolution,
    ResolveRequest,
)
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.ports import API_PORT, CONTROL_PORT, PROBE_PORT
from graft_runtime.contract.status import (
    AdapterReport,
    AdapterState,
    BaseReport,
    BaseState,
    RuntimeStatus,
)
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def digest_of(uri: str) -> str:
    """The same URI has the same digest on every pod."""
    return "sha256:" + hashlib.sha256(uri.encode()).hexdigest()


class StubRuntime:
    """What one pod says of itself."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.keys = Path(arguments.keys_directory)
        self.pod_uid = arguments.pod_uid
        self.config = RuntimeConfig.read((Path(arguments.config_directory) / RUNTIME_CONFIG_FILE).read_bytes())
        self.flags = Path(os.environ.get("STUB_FLAGS", "at:/nonexistent").removeprefix("at:"))
        self.boot_id = uuid.uuid4().hex
        self.sequence = 1
        self.adapter_set = AdapterSet(pool_uid=self.config.pool_uid, config_hash="", generation=1)
        self.version = AdapterSetVersion(generation=0)
        self.changed_at: dict[str, int] = {}
        self.removed: dict[str, int] = {}
        self.changed = asyncio.Condition()
        stored = Path(arguments.adapter_set_directory) / ADAPTER_SET_FILE
        if stored.exists():
            self.take(AdapterSet.from_gzip(stored.read_bytes()))

    @property
    def broken(self) -> bool:
        return "broken-base" in self.config.base_model.source.uri

    def take(self, adapter_set: AdapterSet) -> None:
        self.sequence += 1
        before = {entry.name: entry for entry in self.adapter_set.adapters}
        after = {entry.name: entry for entry in adapter_set.adapters}
        for name in before.keys() - after.keys():
            self.removed[name] = self.sequence
        for name, entry in after.items():
            self.removed.pop(name, None)
            if before.get(name) != entry:
                self.changed_at[name] = self.sequence
        self.adapter_set = adapter_set
        self.version = AdapterSetVersion(generation=adapter_set.generation, hash=adapter_set.content_hash())

    def merged(self) -> Merge | None:
        """Once the set names all digests; the real one serves no earlier."""
        merge, digests = self.config.merge, {entry.name: entry.digest for entry in self.adapter_set.adapters}
        if merge is None:
            return None
        parts = [part.model_copy(update={"digest": digests.get(part.name)}) for part in merge.adapters]
        return merge.model_copy(update={"adapters": tuple(parts)}) if all(part.digest for part in parts) else None

    @property
    def state(self) -> BaseState:
        if self.broken:
            return BaseState.FAILED
        return BaseState.FETCHING if self.config.merge is not None and self.merged() is None else BaseState.SERVING

    def status(self, since: int) -> RuntimeStatus:
        fault = Fault(code=ErrorCode.NOT_A_MODEL, message="it holds no model\n\nhint: point spec.baseModel.uri at one")
        changed = [self.report_of(entry) for entry in self.adapter_set.adapters if self.changed_at[entry.name] > since]
        gone = [
            AdapterReport(name=name, state=AdapterState.DRAINING, removed=True)
            for name, sequence in self.removed.items()
            if sequence > since
        ]
        return RuntimeStatus(
            boot_id=self.boot_id,
            sequence=self.sequence,
            pool_uid=self.config.pool_uid,
            config_hash=self.config.config_hash(),
            ready=self.ready,
            base=BaseReport(
                name=self.config.base_model.name,
                state=self.state,
                fault=fault if self.broken else None,
                digest=digest_of(self.config.base_model.source.uri),
                runner="stub",
                merge=self.merged(),
            ),
            adapter_set=self.version,
            adapters=(*changed, *gone),
        )

    def report_of(self, entry: AdapterEntry) -> AdapterReport:
        """What becomes of an entry, by its URI."""
        uri, serving = entry.source.uri, entry.serving.digest if entry.serving is not None else None
        told = AdapterReport(name=entry.name, digest=entry.digest, serving=serving, state=AdapterState.FAILED)
        if entry.digest is None:
            state = AdapterState.UNRESOLVED if entry.fault is None else AdapterState.FAILED
            return told.model_copy(update={"state": state, "fault": entry.fault})
        rank, most = 128 if "misfit" in uri else 64 if "wide" in uri else 8, self.config.engine.max_rank
        if rank > most:
            fault = Fault(code=ErrorCode.RANK_TOO_HIGH, message=f"rank {rank} is over the pool's maxRank {most}")
            return told.model_copy(update={"fault": fault})
        state = AdapterState.CHECKING if "slow" in uri else AdapterState.MOUNTED
        remapped = "nothing → model at the start of modules' names" if "drifted" in uri else None
        facts = AdapterFacts(method="LORA", rank=8, module_count=14, deltas=["LowRank"], remapped=remapped)
        return told.model_copy(update={"state": state, "facts": facts})

    @property
    def ready(self) -> bool:
        """As the real one: what the set requires is waited for, whatever fault it has."""
        required = [self.report_of(entry) for entry in self.adapter_set.adapters if entry.required]
        return self.state is BaseState.SERVING and all(report.ready or report.serving for report in required)

    async def get_status(self, request: web.Request) -> web.StreamResponse:
        base = self.config.base_model.source.uri
        if "floods" in base:
            return await flood(request)
        if "babbles" in base:
            self.sequence += 1
            lies = [
                AdapterReport(name=f"lie-{self.sequence}-{number}", state=AdapterState.FAILED) for number in range(500)
            ]
            return answer(self.status(self.sequence).model_copy(update={"adapters": tuple(lies)}))
        same = request.query.get("boot") == self.boot_id
        since = int(request.query.get("since", "0")) if same else 0
        if same and since >= self.sequence:
            try:
                async with asyncio.timeout(float(request.query.get("wait", "25"))), self.changed:
                    await self.changed.wait_for(lambda: self.sequence > since)
            except TimeoutError:
                return web.Response(status=204)
        return answer(self.status(since))

    async def put_adapter_set(self, request: web.Request) -> web.Response:
        adapter_set = AdapterSet.read(await request.read())
        older = adapter_set.generation < self.version.generation
        other = adapter_set.generation == self.version.generation and adapter_set.content_hash() != self.version.hash
        if older or other:
            return refusal(409, ErrorCode.STALE_GENERATION, f"generation {self.version.generation} is in force")
        async with self.changed:
            if adapter_set.generation > self.version.generation:
                self.take(adapter_set)
            self.changed.notify_all()
        return answer(Accepted(boot_id=self.boot_id, adapter_set=self.version))

    async def resolve(self, request: web.Request) -> web.Response:
        source = ResolveRequest.read(await request.read()).source
        uri = source.uri
        if "missing" in uri and not (self.flags / "found").exists():
            fault = Fault(code=ErrorCode.NOT_FOUND, message=f"{uri} holds nothing\n\nhint: put the adapter there")
            return answer(Resolution(fault=fault))
        if source.revision is None:
            moved = "moving" in uri and (self.flags / "moved").exists()
            return answer(Resolution(digest=digest_of(f"{uri}{'+moved' if moved else ''}")))
        commit = hashlib.sha1(source.revision.encode(), usedforsecurity=False).hexdigest()
        return answer(Resolution(digest=digest_of(f"{uri}@{commit}"), revision=commit))

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        while (self.flags / "hang").exists():  # noqa: ASYNC110 - a file that the test makes and removes
            await asyncio.sleep(0.1)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            key_id = jwt.get_unverified_header(token)["kid"]
            key = (self.keys / f"{key_id}{PUBLIC_KEY_SUFFIX}").read_bytes()
            jwt.decode(token, key, algorithms=[TOKEN_ALGORITHM], audience=self.pod_uid, issuer=TOKEN_ISSUER, leeway=60)
        except (jwt.InvalidTokenError, KeyError, OSError) as error:
            return refusal(401, ErrorCode.UNAUTHENTICATED, f"no valid token: {error}")
        return await handler(request)


async def flood(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b'{"adapters": [' * 10_000)


def answer(body: RuntimeStatus | Accepted | Resolution) -> web.Response:
    return web.Response(body=body.canonical_json(), content_type="application/json")


def refusal(status: int, code: ErrorCode, message: str) -> web.Response:
    return web.Response(status=status, body=Fault(code=code, message=message).canonical_json())


async def serve(arguments: argparse.Namespace) -> None:
    runtime = StubRuntime(arguments)

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def ready(_: web.Request) -> web.Response:
        return web.Response(status=200 if runtime.ready else 503)

    control = web.Application(middlewares=[runtime.guard])
    control.router.add_get("/status", runtime.get_status)
    control.router.add_put("/adapter-set", runtime.put_adapter_set)
    control.router.add_post("/resolve", runtime.resolve)
    probes = web.Application()
    probes.router.add_get("/startupz", healthy)
    probes.router.add_get("/livez", healthy)
    probes.router.add_get("/readyz", ready)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runners = []
    for application, port in ((web.Application(), API_PORT), (control, CONTROL_PORT), (probes, PROBE_PORT)):
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, arguments.bind_address, port).start()
        runners.append(runner)
    await stop.wait()
    for runner in runners:
        await runner.cleanup()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["serve"])
    for name in ("config", "adapter-set", "keys", "cache", "state"):
        parser.add_argument(f"--{name}-directory", required=True)
    parser.add_argument("--bind-address", required=True)
    parser.add_argument("--pod-uid", required=True)
    for name in ("cache", "adapter"):
        parser.add_argument(f"--{name}-bytes", type=int)
    parser.add_argument("--source-mount", nargs=2, action="append", default=[])
    for name in ("allowed-network", "allowed-host"):
        parser.add_argument(f"--{name}", action="append")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(serve(parse_arguments()))
