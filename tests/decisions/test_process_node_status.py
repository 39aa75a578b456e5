"""The status that a pod gets, probes' verdicts, and the waits between runs."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest
from graft_process_node.back_off import BackOff, runs_again
from graft_process_node.pod_addresses import NoAddressLeftError, PodAddresses
from graft_process_node.pod_status import (
    ContainerRecord,
    PodView,
    Verdict,
    pod_phase,
    pod_status,
    running,
    terminated,
    waiting,
)
from graft_process_node.probe_state import ProbeSettings, ProbeState
from graft_process_node.record_restore import restored_records


def ended(code: int) -> dict[str, Any]:
    return terminated(code, "Error" if code else "Completed", started_at=1.0, finished_at=2.0)


CREATING = ContainerRecord("c", "i", state=waiting("ContainerCreating"))
RUNS = ContainerRecord("c", "i", state=running(1.0), started=True)
READY = ContainerRecord("c", "i", state=running(1.0), started=True, ready=True)
DONE = ContainerRecord("c", "i", state=ended(0))
BROKEN = ContainerRecord("c", "i", state=ended(3))
CRASHING = ContainerRecord("c", "i", state=waiting("CrashLoopBackOff"), last_state=ended(3), restart_count=1)


def view(
    *containers: ContainerRecord, policy: str = "Always", init: tuple[ContainerRecord, ...] = (), **more: Any
) -> PodView:
    pod = more.pop("pod", {"metadata": {"generation": 1}, "spec": {"restartPolicy": policy}})
    return PodView(pod, init, containers, "127.0.0.1", "127.1.0.5", 10.0, more.pop("prepared", True), **more)


def conditions(of: PodView, now: float = 100.0) -> dict[str, str]:
    return {one["type"]: one["status"] for one in pod_status(of, now)["conditions"]}


@pytest.mark.parametrize(
    ("seen", "phase"),
    [
        (view(CREATING), "Pending"),
        (view(RUNS), "Running"),
        (view(RUNS, CREATING), "Pending"),
        (view(RUNS, CRASHING), "Running"),
        (view(CRASHING), "Running"),
        (view(DONE), "Running"),
        (view(DONE, policy="Never"), "Succeeded"),
        (view(DONE, policy="OnFailure"), "Succeeded"),
        (view(BROKEN, policy="Never"), "Failed"),
        (view(BROKEN, DONE, policy="Never"), "Failed"),
        (view(BROKEN, RUNS, policy="Never"), "Running"),
        (view(BROKEN, policy="OnFailure"), "Running"),
        (view(CREATING, init=(RUNS,)), "Pending"),
        (view(CREATING, init=(BROKEN,)), "Pending"),
        (view(CREATING, init=(BROKEN,), policy="Never"), "Failed"),
        (view(RUNS, init=(DONE,)), "Running"),
        (view(DONE, ending=True), "Succeeded"),
        (view(BROKEN, ending=True), "Failed"),
        (view(RUNS, verdict=Verdict("DeadlineExceeded", "")), "Failed"),
    ],
)
def test_the_phase_is_a_kubelets(seen: PodView, phase: str) -> None:
    assert pod_phase(seen) == phase


def test_a_ready_pod_has_every_condition() -> None:
    assert set(conditions(view(READY, init=(DONE,))).values()) == {"True"}


def test_conditions_say_what_is_missing() -> None:
    status = pod_status(view(RUNS, init=(RUNS,), prepared=False), 100.0)
    found = {one["type"]: one for one in status["conditions"]}

    assert {kind: one["status"] for kind, one in found.items()} == {
        "PodReadyToStartContainers": "False",
        "Initialized": "False",
        "ContainersReady": "False",
        "Ready": "False",
        "PodScheduled": "True",
    }
    assert found["Ready"]["reason"] == "ContainersNotReady"
    assert found["Ready"]["message"] == "containers with unready status: [c]"
    assert found["Initialized"]["message"] == "containers with incomplete status: [c]"


def test_a_pod_that_succeeded_is_not_ready_any_more() -> None:
    status = pod_status(view(DONE, policy="Never"), 100.0)
    found = {one["type"]: one for one in status["conditions"]}

    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "PodCompleted")


def test_readiness_gates_are_waited_for() -> None:
    pod: dict[str, Any] = {
        "metadata": {},
        "spec": {"readinessGates": [{"conditionType": "acme/ok"}]},
        "status": {"conditions": []},
    }
    assert conditions(view(READY, pod=pod))["Ready"] == "False"
    assert conditions(view(READY, pod=pod))["ContainersReady"] == "True"

    pod["status"]["conditions"] = [{"type": "acme/ok", "status": "True"}]
    assert conditions(view(READY, pod=pod))["Ready"] == "True"


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    first = pod_status(view(RUNS), 100.0)
    again = pod_status(view(RUNS, written=first), 200.0)
    later = pod_status(view(READY, written=first), 300.0)

    assert again == first
    times = {one["type"]: one["lastTransitionTime"] for one in later["conditions"]}
    assert times["Ready"] == "1970-01-01T00:05:00Z"
    assert times["Initialized"] == "1970-01-01T00:01:40Z"


def test_addresses_and_verdict_are_told() -> None:
    status = pod_status(view(verdict=Verdict("Unsupported", "spec.hostNetwork")), 100.0)

    assert (status["podIP"], status["podIPs"], status["hostIP"]) == ("127.1.0.5", [{"ip": "127.1.0.5"}], "127.0.0.1")
    assert (status["phase"], status["reason"], status["message"]) == ("Failed", "Unsupported", "spec.hostNetwork")


def test_after_an_agent_was_killed_its_containers_count_as_killed() -> None:
    pod: dict[str, Any] = {
        "spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}]},
        "status": {
            "containerStatuses": [
                {"name": "a", "restartCount": 2, "state": running(1.0)},
                {"name": "b", "state": ended(0)},
                {"name": "c", "restartCount": 1, "state": waiting("CrashLoopBackOff"), "lastState": ended(3)},
            ]
        },
    }

    a, b, c, d = restored_records(pod, init=False, now="2026-01-01T00:00:00Z")

    assert (a.state["terminated"]["exitCode"], a.restart_count) == (137, 2)
    assert b.succeeded
    assert (c.state["terminated"]["exitCode"], c.restart_count) == (3, 1)
    assert d.state == waiting("ContainerCreating")


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [
        ("Always", 0, True),
        ("Always", 1, True),
        ("OnFailure", 0, False),
        ("OnFailure", 1, True),
        ("Never", 0, False),
        ("Never", 1, False),
    ],
)
def test_restart_policies(policy: str, code: int, again: bool) -> None:
    assert runs_again(policy, code) is again


def test_the_first_restart_comes_at_once_and_the_waits_double() -> None:
    waits = BackOff()

    assert [waits.after_run(1.0) for _ in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]


def test_a_long_run_forgets_the_waits() -> None:
    waits = BackOff()
    for _ in range(4):
        waits.after_run(1.0)

    assert [waits.after_run(600.0), waits.after_run(1.0)] == [0, 10]


def test_a_probe_needs_as_many_failures_in_a_row_as_its_threshold() -> None:
    state = ProbeState(ProbeSettings(failure_threshold=3))

    changes = [state.observe(result) for result in (True, False, False, True, False, False, False, False)]

    assert changes == [True, False, False, False, False, False, True, False]
    assert state.verdict is False


def test_a_probe_needs_as_many_successes_in_a_row_as_its_threshold() -> None:
    state = ProbeState(ProbeSettings(success_threshold=2, failure_threshold=1))

    assert [state.observe(result) for result in (True, False, True, True)] == [False, True, False, True]


def test_a_probes_settings_have_kubernetes_defaults() -> None:
    assert ProbeSettings.of({}) == ProbeSettings(0.0, 10.0, 1.0, 1, 3, None)
    assert ProbeSettings.of({"periodSeconds": 2, "terminationGracePeriodSeconds": 0}) == ProbeSettings(
        period=2.0, termination_grace_period=0.0
    )


def test_addresses_are_unique_and_not_used_again_soon() -> None:
    addresses = PodAddresses(IPv4Network("127.100.0.0/23"))

    first = addresses.take("a")
    assert (first, addresses.take("a")) == ("127.100.1.0", "127.100.1.0")
    assert addresses.take("b") == "127.100.1.1"
    addresses.release("a")
    assert addresses.take("c") == "127.100.1.2"
    assert addresses.take("d", wanted="127.100.1.1") == "127.100.1.3", "b has it"
    assert addresses.take("e", wanted="127.100.1.0") == "127.100.1.0"
    assert addresses.take("f", wanted="10.0.0.1") == "127.100.1.4"


def test_when_every_address_is_taken_it_says_so() -> None:
    addresses = PodAddresses(IPv4Network("127.100.0.0/23"))
    for number in range(255):
        addresses.take(str(number))

    with pytest.raises(NoAddressLeftError):
        addresses.take("one too many")
