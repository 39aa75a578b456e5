"""A pod on another engine than Graft's own: what that engine can't do is refused by its capabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.facts import DeltaKind
from graft_runtime.contract.status import AdapterState
from graft_runtime.errors import ErrorCode

SCRIPT = Path(__file__).with_name("plain_engine.py")
PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def pod(make_pod: Any, make_adapter: Any) -> Any:
    pod = make_pod(composition=True)
    plain, other = make_adapter("plain"), make_adapter("other")
    entries = [
        pod.entry("plain", plain),
        pod.entry("other", other),
        pod.entry("scaled", plain, scale=0.5),
        pod.entry("dora", make_adapter("dora", use_dora=True)),
        pod.entry("biased", make_adapter("biased", lora_bias=True)),
    ]
    pod.mount_set(pod.set_of(1, *entries))
    pod.start(program=(str(SCRIPT),))
    pod.wait_ready()
    return pod


def answer(reply: Any) -> Any:
    assert reply.status == 200, reply.content
    return reply.json["usage"]["completion_tokens"], reply.json["choices"][0]["text"]


def test_the_base_and_a_plain_adapter_are_served(pod: Any) -> None:
    assert pod.status().base.runner == "plain"
    plain = pod.complete("plain", PROMPT)
    assert answer(pod.complete("tiny", PROMPT))[0] == answer(plain)[0] == len(PROMPT)
    assert answer(plain) == answer(pod.complete("other", PROMPT)) != answer(pod.complete("tiny", PROMPT))
    report = pod.report("plain")
    assert (report.state, report.facts.deltas) == (AdapterState.MOUNTED, {DeltaKind.LOW_RANK})
    assert plain.headers["x-graft-adapter-digest"] == report.digest


@pytest.mark.parametrize(("name", "kind"), [("dora", "Gain, Shift"), ("biased", "Offset")])
def test_what_the_engine_does_not_compute_is_refused_before_it_is_sent_there(pod: Any, name: str, kind: str) -> None:
    report = pod.report(name)
    assert (report.state, report.fault.code) == (AdapterState.FAILED, ErrorCode.UNSUPPORTED_METHOD)
    assert f"adapter `{name}` (LORA) can't be served on this engine: it does not compute {kind}" in report.fault.message
    reply = pod.complete(name, PROMPT)
    assert (reply.status, reply.json["error"]["code"]) == (400, "UnsupportedMethod")


def test_weights_and_sums_are_refused(pod: Any) -> None:
    assert pod.report("scaled").fault.code is ErrorCode.NOT_SCALABLE
    assert "this engine serves adapters with weight 1 alone" in pod.report("scaled").fault.message
    both = pod.complete("tiny", PROMPT, adapters=[{"name": "plain"}, {"name": "other"}])
    assert (both.status, both.json["error"]["code"]) == (400, "NotComposable")
    assert "they are 2, and this engine takes 1 in a request" in both.json["error"]["message"]
    weighted = pod.complete("tiny", PROMPT, adapters=[{"name": "plain", "weight": 0.5}])
    assert (weighted.status, weighted.json["error"]["code"]) == (400, "NotComposable")
    assert answer(pod.complete("tiny", PROMPT, adapters=[{"name": "plain"}])) == answer(pod.complete("plain", PROMPT))


def test_a_pod_on_it_ends_as_any_other(pod: Any) -> None:
    assert pod.end() == 0
