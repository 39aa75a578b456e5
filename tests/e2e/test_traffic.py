"""What is done to a pool of two pods and its operator while it is asked 20 times a second: no request fails, kept-alive
or not, but those that a dead container was answering or that reach its address before anybody knows."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.cluster import ADAPTERS, EXTRA, RELEASE, SYSTEM, CommandError, Pool
from tests.e2e.traffic import Disturbance, Traffic

KILLED_SECONDS = 5.0
"""So long after the end of one of two pods' containers requests may reach its address: until the kubelet has seen it,
and kube-proxy has heard of it."""


REFUSED = "ConnectionRefusedError(111, 'Connection refused')"
"""What a new connection gets from a Service without a pod that is Ready."""


def test_without_any_disturbance(traffic: Traffic) -> None:
    with traffic.disturbed("nothing") as row:
        time.sleep(15)
    none_failed(row)
    assert row.rate >= 20


@pytest.mark.quick
def test_helm_test(pool: Pool) -> None:
    with pool.cluster.helm() as helm:
        helm.test(RELEASE, timeout=120)


@pytest.mark.quick
def test_an_adapter_is_added_and_removed(pool: Pool, traffic: Traffic) -> None:
    with traffic.disturbed("an adapter is added") as added:
        pool.apply((*ADAPTERS, EXTRA))
        pool.wait_until_settled()
    with traffic.disturbed("an adapter is removed") as removed:
        pool.apply(ADAPTERS)
        pool.wait_until_settled()
    none_failed(added)
    none_failed(removed)


def test_pods_roll(pool: Pool, traffic: Traffic) -> None:
    before = pool.pods()
    with traffic.disturbed("pods roll") as row:
        pool.patch(podTemplate={"metadata": {"annotations": {"rolled": "once"}}})
        pool.cluster.eventually(lambda: pool.settled() and not set(before) & set(pool.pods()), "all pods are new", 600)
    none_failed(row)


def test_a_third_pod_comes_and_goes(pool: Pool, traffic: Traffic) -> None:
    pool.patch(replicas=3)
    pool.wait_until_settled(3)
    with traffic.disturbed("scaled from 3 pods to 2") as row:
        pool.patch(replicas=2)
        pool.wait_until_settled()
    none_failed(row)


@pytest.mark.quick
def test_a_pod_is_deleted(pool: Pool, traffic: Traffic) -> None:
    victim = pool.pods()[0]
    with traffic.disturbed("a pod is deleted") as row:
        pool.kubectl("delete", "pod", victim, timeout=300)
        pool.wait_until_settled()
    none_failed(row)


def test_a_drain_takes_one_pod_and_the_budget_keeps_the_other(pool: Pool, traffic: Traffic) -> None:
    """Of the pool's pods alone: where there is one node, none is left for their successors."""
    (node, *_) = (item["metadata"]["name"] for item in pool.cluster.get("nodes")["items"])
    drain = ("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=20s")
    selector = f"--pod-selector=graft.dev/deployment={pool.name}"
    with traffic.disturbed("a node is drained") as row:
        try:
            with pytest.raises(CommandError, match=r"disruption budget|timed out|timeout"):
                pool.cluster.kubectl(*drain, selector)
        finally:
            pool.cluster.kubectl("uncordon", node)
        pool.wait_until_settled()
    none_failed(row)


def test_the_kubelet_ends(pool: Pool, traffic: Traffic, own_node: None) -> None:
    process = process_of("kubelet")
    assert process is not None
    with traffic.disturbed("the kubelet is killed") as row:
        os.kill(process, signal.SIGKILL)
        pool.cluster.eventually(lambda: process_of("kubelet") not in (process, None), "the kubelet runs again")
        time.sleep(10)
        pool.wait_until_settled()
    # Up to Kubernetes 1.34 a kubelet that starts holds its pods for unready until it has probed each (KEP-4781).
    assert row.failed_kept == 0, row.faults
    assert set(row.faults) <= {REFUSED}, row.faults
    assert row.failing_seconds < KILLED_SECONDS, row.faults
    assert all(count == 0 for count in restarts(pool).values())


def test_the_operator_ends(pool: Pool, traffic: Traffic) -> None:
    with traffic.disturbed("the operator's pod is deleted") as row:
        pool.cluster.kubectl("-n", SYSTEM, "delete", "pods", "-l", "graft.dev/component=operator")
        pool.cluster.kubectl("-n", SYSTEM, "rollout", "status", "deployment", "--timeout=120s", timeout=130)
        pool.apply((*ADAPTERS, EXTRA))
        pool.wait_until_settled()
        pool.apply(ADAPTERS)
        pool.wait_until_settled()
    none_failed(row)


def test_the_leading_operator_is_killed(pool: Pool, traffic: Traffic, own_node: None) -> None:
    leader = pool.cluster.get("lease", f"{RELEASE}-operator", "-n", SYSTEM)["spec"]["holderIdentity"]
    (process,) = processes("graft-operator", leader)
    with traffic.disturbed("the leading operator is killed (kill -9)") as row:
        os.kill(process, signal.SIGKILL)
        pool.apply((*ADAPTERS, EXTRA))
        pool.wait_until_settled()
        pool.apply(ADAPTERS)
        pool.wait_until_settled()
    none_failed(row)


@pytest.mark.quick
def test_a_container_is_killed(pool: Pool, traffic: Traffic, own_node: None) -> None:
    before = sum(restarts(pool).values())
    with traffic.disturbed("a container is killed (kill -9)") as row:
        os.kill(min(processes("graft-runtime", "serve")), signal.SIGKILL)
        pool.cluster.eventually(lambda: sum(restarts(pool).values()) == before + 1, "the container is started again")
        pool.wait_until_settled()
    assert row.failing_seconds < KILLED_SECONDS, row.faults
    assert row.failed < row.requests * KILLED_SECONDS / row.seconds, row.faults


def test_upgrade_rollback_and_uninstall(pool: Pool, traffic: Traffic) -> None:
    pods = pool.pods()
    with traffic.disturbed("`helm upgrade` of the operator") as upgraded:
        pool.cluster.upgrade(logging={"level": "debug"})
        pool.wait_until_settled()
    with traffic.disturbed("`helm rollback`") as rolled_back, pool.cluster.helm() as helm:
        helm.rollback(RELEASE, version=1, timeout=180, wait="watcher")
        pool.wait_until_settled()
    with traffic.disturbed("`helm uninstall`, then `helm install`") as installed:
        with pool.cluster.helm() as helm:
            helm.uninstall(RELEASE, wait="watcher", timeout=180)
        time.sleep(5)
        assert pool.pods() == pods, "pools serve on"
        pool.cluster.install()
        pool.apply((*ADAPTERS, EXTRA))
        pool.wait_until_settled()
        pool.apply(ADAPTERS)
        pool.wait_until_settled()
    for row in (upgraded, rolled_back, installed):
        none_failed(row)
    assert pool.pods() == pods, "no pod was replaced"


def test_an_upgrade_that_changes_pods_rolls_them(pool: Pool, traffic: Traffic) -> None:
    before = pool.pods()
    with traffic.disturbed("`helm upgrade` that rolls pools") as row:
        pool.cluster.upgrade(podDefaults={"metadata": {"annotations": {"upgraded": "once"}}})
        pool.cluster.eventually(lambda: pool.settled() and not set(before) & set(pool.pods()), "all pods are new", 600)
    none_failed(row)


def none_failed(row: Disturbance) -> None:
    assert row.failed == 0, json.dumps(row.faults, indent=2)
    assert row.requests > 0


def restarts(pool: Pool) -> dict[str, int]:
    items = pool.cluster.get("pods", "-n", pool.namespace, "-l", f"graft.dev/deployment={pool.name}")["items"]
    return {
        item["metadata"]["name"]: sum(one["restartCount"] for one in item["status"].get("containerStatuses", ()))
        for item in items
    }


def process_of(name: str) -> int | None:
    return next((process for process in processes(name) if command_of(process)[0].endswith(f"/{name}")), None)


def processes(*words: str) -> list[int]:
    """All whose command line holds these words, alone or at the end of a path."""
    numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [pid for pid in numbers if all(any(a.endswith(word) for a in command_of(pid)) for word in words)]


def command_of(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended
        return [""]
