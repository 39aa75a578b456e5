"""The operator's client against a real runtime of another version of the contract, and the other way round."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from graft_operator.clients.runtime_client import OtherVersionError, PodAddress, RuntimeClient, RuntimeRefusedError
from graft_runtime.contract import wire
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import RUNTIME_CONFIG_FILE
from graft_runtime.contract.control import ResolveRequest
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from tests.support.waiting import wait_until

VERSION_2 = "import graft_runtime.contract.wire as w; w.CONTRACT_VERSION = 2; from graft_runtime.__main__ import main"
PROGRAMS = {1: ("-m", "graft_runtime"), 2: ("-c", f"{VERSION_2}; main()")}


def config_of(pod: Any, version: int) -> None:
    fields = json.loads(pod.config.canonical_json()) | {"contractVersion": version}
    (pod.directory / "config" / RUNTIME_CONFIG_FILE).write_text(json.dumps(fields))


@pytest.mark.parametrize(("runtime", "operator"), [(2, 1), (1, 2)])
async def test_operator_and_pod_of_different_versions_refuse_each_other(
    make_pod: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, runtime: int, operator: int
) -> None:
    pod = make_pod()
    config_of(pod, runtime)
    pod.start(program=PROGRAMS[runtime])
    wait_until(lambda: pod.probe("/livez") == 200)
    monkeypatch.setattr(wire, "CONTRACT_VERSION", operator)
    client, address = RuntimeClient(lambda uid, now: pod.token()), PodAddress("pod-uid", pod.address)
    try:
        told = f"the RuntimeStatus is of version {runtime} of the contract .*, expected version {operator}"
        with pytest.raises(OtherVersionError, match=told) as not_read:
            await client.status(address, "", 0)
        assert not_read.value.fault.code is ErrorCode.UNSUPPORTED_CONTRACT_VERSION
        assert "\n\nhint: " in not_read.value.fault.message
        for kind, asking in (
            ("AdapterSet", client.push(address, pod.set_of(1))),
            ("ResolveRequest", client.resolve(address, ResolveRequest(source=Source(uri="pvc://shelf/base")))),
        ):
            told = f"the {kind} is of version {operator} of the contract .*, expected version {runtime}"
            with pytest.raises(RuntimeRefusedError, match=told) as refused:
                await asking
            assert refused.value.status == 400
            assert "\n\nhint: " in str(refused.value)
        reply = pod.push(pod.set_of(1))
        assert Fault.model_validate_json(reply.content).code is ErrorCode.UNSUPPORTED_CONTRACT_VERSION
    finally:
        await client.close()


@pytest.mark.parametrize(("runtime", "operator"), [(2, 1), (1, 2)])
def test_a_pod_refuses_a_config_of_another_version_and_says_so(
    make_pod: Callable[..., Any], runtime: int, operator: int
) -> None:
    pod = make_pod()
    config_of(pod, operator)
    pod.start(program=PROGRAMS[runtime])
    assert pod.process.wait(60) == 2
    assert f"the RuntimeConfig is of version {operator} of the contract" in pod.log
    assert f"expected version {runtime}" in pod.log
    assert "UnsupportedContractVersion" in pod.log


def test_a_pod_does_not_take_a_mounted_set_of_another_version(make_pod: Callable[..., Any]) -> None:
    pod = make_pod()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "CONTRACT_VERSION", 2)
        pod.mount_set(pod.set_of(5))
    pod.start()
    wait_until(lambda: pod.probe("/livez") == 200)
    wait_until(lambda: "the AdapterSet is of version 2 of the contract" in pod.log)
    assert pod.status().adapter_set.generation == 0
    assert pod.push(pod.set_of(1)).status == 200
