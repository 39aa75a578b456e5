"""Adapters whose files mean harm, brought to a pod: each is refused by its name, and the operator is answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.errors import ErrorCode

from tests.support.hostile_files import Workshop
from tests.support.waiting import wait_until

PLAIN = (str(Path(__file__).with_name("plain_engine.py")),)
LONGEST_FAULT = 10_000


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any]) -> Any:
    pod = make_pod()
    pod.mount_set(pod.set_of(1))
    pod.start(program=PLAIN)
    pod.wait_ready()
    return pod


@pytest.fixture(scope="module")
def workshop(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tiny_base, tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(
    ("made", "codes"),
    [
        (Workshop.long_paths, {ErrorCode.CORRUPT, ErrorCode.UNSAFE_FILE}),
        (Workshop.long_names, {ErrorCode.CORRUPT, ErrorCode.INVALID_CONFIG, ErrorCode.UNSUPPORTED_METHOD}),
    ],
    ids=["module paths of 60,000 characters", "names of 4 MiB"],
)
def test_the_operator_is_answered_while_hostile_files_are_read(
    pod: Any, workshop: Workshop, made: Callable[[Workshop], list[Path]], codes: set[ErrorCode]
) -> None:
    generation = 1 + pod.status().adapter_set.generation
    bad = [pod.entry(one.name, one) for one in made(workshop)]
    good: AdapterEntry = pod.entry("good", workshop.good(f"good{generation}", generation))
    assert pod.push(pod.set_of(generation, *bad, good)).status == 200

    def all_are_judged() -> bool:
        reports = {report.name: report for report in pod.status().adapters}
        return all(reports[entry.name].fault for entry in bad) and reports["good"].ready

    wait_until(all_are_judged, "each is refused, and the good one serves", seconds=30)
    for entry in bad:
        fault = pod.report(entry.name).fault
        assert fault.code in codes, fault
        assert len(fault.message) < LONGEST_FAULT
        reply = pod.complete(entry.name)
        assert (reply.status >= 400, len(reply.content) < LONGEST_FAULT) == (True, True)
    assert pod.text("good")
    assert pod.push(pod.set_of(generation + 1, good)).status == 200
    assert pod.status().adapter_set.generation == generation + 1
    assert {report.name for report in pod.status().adapters} == {"good"}


def test_a_template_that_takes_all_time_or_memory_is_its_adapter_s_fault_alone(pod: Any, workshop: Workshop) -> None:
    generation = 1 + pod.status().adapter_set.generation
    *bad, slow = [pod.entry(one.name, one) for one in workshop.templates()]
    good = pod.entry("good", workshop.good(f"good{generation}", generation))
    assert pod.push(pod.set_of(generation, *bad, slow, good)).status == 200
    wait_until(lambda: pod.report("good").ready, "the good one waits for no other", seconds=30)
    wait_until(lambda: all(pod.report(one.name).fault for one in bad), "each is refused", seconds=90)
    wait_until(lambda: pod.report(slow.name).ready, "one that takes no more than it may serves", seconds=30)
    for entry in bad:
        assert pod.report(entry.name).fault.code == ErrorCode.UNSAFE_FILE
        assert pod.complete(entry.name).status >= 400
    said = {"model": "good", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    assert pod.post("/v1/chat/completions", said).status == 200
    assert pod.process.poll() is None
