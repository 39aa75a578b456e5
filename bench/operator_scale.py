"""How one operator carries many pools: a burst of new ones, then a restart with all of them in place.

    python bench/operator_scale.py --pools 500 --adapters 5000

Each pool has `replicas: 0` and one adapter, so its children are made and no pod is; the Adapters are attached to the
pools in turn. A real kube-apiserver, etcd, controller manager and scheduler share the machine with the operator.

create    from before the first pool is created to the last one's status
created   the same operator once its queue is empty
attached  the same operator once the Adapters are made, their statuses are written and its queue is empty
change    one Adapter after the other is changed: from before the change until its status tells of it
restart   from the start of a second operator's process to the end of the first pass over the last pool
settled   the same operator once its queue is empty, what its watches began with taken in
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

import aiohttp
from graft_local.cluster import LocalCluster
from graft_operator.clients.cluster import Cluster
from graft_operator.kinds import ADAPTER_DEPLOYMENT, watched_kinds
from graft_operator.resource.crd import CRD_FOLDER
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config
from operator_adapters import attach, change_some, create_all

ROOT = Path(__file__).parents[1]
NAMESPACE = "operator-scale"
POLL_SECONDS = 1.0
"""Metrics of 500 pools cost the operator some 50 ms."""
DEADLINE_SECONDS = 1800.0
OBSERVED = "graft_operator_observed_timestamp_seconds"
SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$", re.MULTILINE)
_COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}
"""Modules are compiled by the first operator, for the second: an image holds them compiled."""
Versions = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Usage:
    """Of one operator process since its start; sizes in bytes."""

    seconds: float
    cpu_seconds: float
    resident_bytes: int
    peak_bytes: int
    requests: Mapping[str, int]
    """Method → requests to the API server, the watches not counted."""
    passes: int


@dataclass(frozen=True)
class Result:
    """What was measured."""

    pools: int
    create: Usage
    created: Usage
    """The same operator once no pass runs any more; `seconds` counts that look as well."""
    adapters: int
    attached: Usage
    attach_seconds: float
    """From before the first Adapter is created until the status of each tells of it."""
    change_seconds: Sequence[float]
    """Of each Adapter that was changed, from before the change until its status tells of it."""
    change_requests: Mapping[str, int]
    """Of the operator for all of these: method → requests to the API server."""
    restart: Usage
    settled: Usage
    """The second operator once no pass runs any more."""
    changed: int
    """Objects whose resourceVersion the restart changed, came or went with it."""


class OperatorProcess:
    """`graft-operator run` for one namespace. Leaving the `with` block ends it."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path, *, profile: Path | None = None) -> None:
        self._url = f"http://127.0.0.1:{(port := _free_port())}/metrics"
        profiler = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
        self.started = time.time()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, *profiler, "-m", "graft_operator", "run", "--namespace", namespace),
                    *("--runtime-image", "runtime", "--watch-namespace", namespace, "--log-level", "warning"),
                    *("--signing-key-secret", "signing-key", "--health-address", "127.0.0.1"),
                    *("--health-port", str(port)),
                ],
                env={**os.environ, "KUBECONFIG": str(kubeconfig), **_COMPILED, "PYTHONPYCACHEPREFIX": str(log.parent)},
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def metrics(self) -> str:
        """Its metrics in Prometheus' text format; empty as long as it does not answer."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the operator ended with status {self._process.returncode}")
        with suppress(aiohttp.ClientError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=10)
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self._url) as response:
                return await response.text()
        return ""

    async def observed_at(self) -> float:
        """Unix time at which it had seen to each pool that was there at its start; 0: not yet."""
        text = await self.metrics()
        return max((float(found["value"]) for found in SAMPLE.finditer(text) if found["name"] == OBSERVED), default=0.0)

    async def usage(self) -> Usage:
        """Up to now."""
        seconds = time.time() - self.started
        text = await self.metrics()
        process = Path("/proc") / str(self._process.pid)
        fields = (process / "stat").read_text().rpartition(") ")[2].split()
        sizes = dict(re.findall(r"^(Vm\w+):\s+(\d+) kB$", (process / "status").read_text(), re.MULTILINE))
        return Usage(
            seconds=seconds,
            cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            resident_bytes=int(sizes["VmRSS"]) * 1024,
            peak_bytes=int(sizes["VmHWM"]) * 1024,
            requests=_by_label(text, "graft_operator_requests_total", "method"),
            passes=sum(_by_label(text, "graft_operator_passes_total", "result").values()),
        )


async def measure(
    kubeconfig: Path, namespace: str, pools: int, adapters: int, *, log: Path, profile: Path | None
) -> Result:
    """Both runs, in a namespace that exists and is empty."""
    configuration = Configuration()
    await load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
    cluster = Cluster(configuration)
    try:
        with OperatorProcess(kubeconfig, namespace, log, profile=profile and profile.with_suffix(".create")) as first:
            await _until(lambda: _answers(first), "the operator")
            first.started = time.time()
            await _create(cluster, namespace, pools)
            await _until(lambda: _observed(first, pools), "a pass over every pool")
            create = await first.usage()
            await _until(lambda: _is_settled(cluster, namespace, pools), "the pools to settle")
            await _until(lambda: _is_idle(first), "the operator to be idle")
            created = await first.usage()
            attach_seconds = await attach(cluster, namespace, pools, adapters)
            await _until(lambda: _is_idle(first), "the operator to be idle")
            attached = await first.usage()
            change_seconds = await change_some(cluster, namespace, adapters)
            await _until(lambda: _is_idle(first), "the operator to be idle")
            told = (await first.usage()).requests
        before = await _versions(cluster, namespace)
        with OperatorProcess(kubeconfig, namespace, log, profile=profile) as second:
            await _until(lambda: _has_observed(second), "a pass over every pool")
            restart = replace(await second.usage(), seconds=await second.observed_at() - second.started)
            await _until(lambda: _is_idle(second), "the operator to be idle")
            settled = await second.usage()
        after = await _versions(cluster, namespace)
    finally:
        await cluster.close()
    changed = sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())
    return Result(
        pools=pools,
        create=create,
        created=created,
        adapters=adapters,
        attached=attached,
        attach_seconds=attach_seconds,
        change_seconds=change_seconds,
        change_requests={method: count - attached.requests.get(method, 0) for method, count in told.items()},
        restart=restart,
        settled=settled,
        changed=changed,
    )


async def _create(cluster: Cluster, namespace: str, pools: int) -> None:
    await create_all(cluster, (_pool(namespace, f"pool-{number}") for number in range(pools)))


def _pool(namespace: str, name: str) -> dict[str, Any]:
    return {
        **ADAPTER_DEPLOYMENT.type_meta,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "replicas": 0,
            "baseModel": {"uri": "pvc://shelf/base"},
            "sources": [{"name": "shelf", "claimName": "shelf"}],
            "accelerator": {"count": 0},
            "adapters": [{"name": "billing", "uri": "pvc://shelf/billing"}],
        },
    }


async def _versions(cluster: Cluster, namespace: str) -> Versions:
    """Kind and name of every pool and child → its resourceVersion."""
    return {
        (kind.name, body["metadata"]["name"]): body["metadata"]["resourceVersion"]
        for kind in watched_kinds()
        async for page in cluster.pages(kind.name, namespace, kind.selector)
        for body in page.items
    }


async def _answers(operator: OperatorProcess) -> bool:
    return bool(await operator.metrics())


async def _observed(operator: OperatorProcess, pools: int) -> bool:
    """A pass over each pool has ended with its conditions."""
    text = await operator.metrics()
    return text.count('graft_pool_condition{condition="Ready"') >= pools


async def _has_observed(operator: OperatorProcess) -> bool:
    return await operator.observed_at() > 0


async def _is_idle(operator: OperatorProcess) -> bool:
    """No pass ended between two looks."""
    before = (await operator.usage()).passes
    await asyncio.sleep(1.0)
    return (await operator.usage()).passes == before


async def _is_settled(cluster: Cluster, namespace: str, pools: int) -> bool:
    """The controllers have said all that they will, and each status tells so."""
    found = [page async for page in cluster.pages(ADAPTER_DEPLOYMENT.name, namespace, None)]
    statuses = [body.get("status", {}) for page in found for body in page.items]
    conditions = [{one["type"]: one["status"] for one in status.get("conditions", ())} for status in statuses]
    return [one.get("Reconciling") for one in conditions] == ["False"] * pools


async def _until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not await holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {DEADLINE_SECONDS:.0f} s for {what}")
        await asyncio.sleep(POLL_SECONDS)


def _by_label(text: str, metric: str, label: str) -> dict[str, int]:
    """The sum of a counter for each value of one label."""
    sums: dict[str, int] = {}
    for sample in SAMPLE.finditer(text):
        if sample["name"] == metric:
            value = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"] or ""))[label]
            sums[value] = sums.get(value, 0) + int(float(sample["value"]))
    return sums


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _told(result: Result) -> str:
    rows = [
        f"{result.pools} pools, {os.cpu_count()} CPUs",
        f"{'':10} seconds  CPU s  RSS MiB  peak MiB  passes a pool  requests a pool",
    ]
    for name in ("create", "created", "attached", "restart", "settled"):
        usage: Usage = getattr(result, name)
        requests = ", ".join(f"{count / result.pools:.2f} {method}" for method, count in sorted(usage.requests.items()))
        sizes = f"{usage.resident_bytes / 2**20:8.0f} {usage.peak_bytes / 2**20:9.0f}"
        passes = usage.passes / result.pools
        rows.append(f"{name:10} {usage.seconds:7.1f} {usage.cpu_seconds:6.1f} {sizes} {passes:14.2f}  {requests}")
    if seconds := sorted(result.change_seconds):
        each = ", ".join(f"{count / len(seconds):.2f} {method}" for method, count in result.change_requests.items())
        rows.append(f"{result.adapters} Adapters attached in {result.attach_seconds:.1f} s")
        rows.append(f"change: median {median(seconds):.3f} s, longest {seconds[-1]:.3f} s; requests a change: {each}")
    rows.append(f"objects that the restart changed: {result.changed}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, default=500)
    parser.add_argument("--adapters", type=int, default=0, help="attached to the pools in turn")
    parser.add_argument("--kubeconfig", type=Path, help="a cluster that runs; default: a local one of its own")
    parser.add_argument("--namespace", default=NAMESPACE, help="made if need be; must hold no pools")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    parser.add_argument("--profile", type=Path, help="write cProfile's numbers of the operators here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "operator.log"
        try:
            if options.kubeconfig is not None:
                result = _run(options.kubeconfig, options, log)
            else:
                with LocalCluster.start(Path(directory) / "cluster", node=False, services=False) as cluster:
                    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / CRD_FOLDER))
                    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
                    cluster.kubectl("create", "namespace", options.namespace)
                    result = _run(cluster.kubeconfig, options, log)
        except BaseException:
            sys.stderr.write(log.read_text()[-3000:] if log.exists() else "")
            raise
    print(_told(result))
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(result), indent=1))


def _run(kubeconfig: Path, options: argparse.Namespace, log: Path) -> Result:
    return asyncio.run(
        measure(kubeconfig, options.namespace, options.pools, options.adapters, log=log, profile=options.profile)
    )


if __name__ == "__main__":
    main()
