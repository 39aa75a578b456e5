"""What the operator says and asks: tokens, generations, hot adapters, resolutions, the long poll, restarts."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import EngineConfig
from graft_runtime.contract.control import Check, Resolution, ResolveRequest
from graft_runtime.contract.status import AdapterReport
from graft_runtime.contract.wire import Fault
from safetensors.torch import load_file, save_file

from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> dict[str, Path]:
    return {name: make_adapter(name) for name in ("a", "b", "c")}


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any], adapters: dict[str, Path]) -> Any:
    """Two places for adapters; `a` in force."""
    pod = make_pod(engine=EngineConfig(max_sequences=4, max_rank=16, max_mounted_adapters=2), drain_seconds=5)
    pod.mount_set(pod.set_of(1, pod.entry("a", adapters["a"])))
    pod.start()
    pod.wait_ready()
    return pod


def next_set(pod: Any, *entries: Any) -> Any:
    """A set of the next generation, in force when this returns."""
    status = pod.status()
    adapter_set = pod.set_of(status.adapter_set.generation + 1, *entries)
    reply = pod.push(adapter_set)
    assert reply.status == 200, reply.content
    assert reply.json["adapterSet"] == {"generation": adapter_set.generation, "hash": adapter_set.content_hash()}
    return adapter_set


TOKENS: dict[str, Callable[[Any], str | None]] = {
    "none": lambda pod: "",
    "nonsense": lambda pod: "a.b.c",
    "another pod's": lambda pod: pod.token(aud="another-pod"),
    "another issuer's": lambda pod: pod.token(iss="somebody"),
    "an old one": lambda pod: pod.token(iat=int(time.time()) - 600, exp=int(time.time()) - 300),
    "one of the future": lambda pod: pod.token(iat=int(time.time()) + 600, exp=int(time.time()) + 700),
    "one without end": lambda pod: pod.token(exp=int(time.time()) + 10_000),
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS.keys())
def test_a_bad_token_opens_nothing(pod: Any, token: Callable[[Any], str]) -> None:
    for method, path in (("GET", "/status"), ("PUT", "/adapter-set"), ("POST", "/resolve"), ("POST", "/inspect")):
        reply = pod.control(method, path, token=token(pod))
        assert reply.status == 401
        assert Fault.model_validate_json(reply.content).code == "Unauthenticated"


def test_a_key_that_was_withdrawn_opens_nothing(pod: Any) -> None:
    token = pod.token()
    (key,) = (pod.directory / "keys").iterdir()
    moved = key.rename(pod.directory / "moved.pem")
    assert pod.control("GET", "/status", token=token).status == 401
    moved.rename(key)
    assert pod.control("GET", "/status", token=token).status == 200


def test_older_and_foreign_sets_are_refused(pod: Any, adapters: dict[str, Path]) -> None:
    entry = pod.entry("a", adapters["a"])
    current = next_set(pod, entry)
    assert pod.push(current).status == 200, "the same again is no fault"
    for wrong, code in (
        (pod.set_of(current.generation - 1, entry), "StaleGeneration"),
        (pod.set_of(current.generation), "StaleGeneration"),
        (pod.set_of(current.generation + 1, pool_uid="another"), "WrongPool"),
        (pod.set_of(current.generation + 1, config_hash="another"), "WrongPool"),
    ):
        reply = pod.push(wrong)
        assert reply.status == 409
        assert Fault.model_validate_json(reply.content).code == code
    assert pod.status().adapter_set.hash == current.content_hash()
    assert pod.control("PUT", "/adapter-set", b'{"generation": "x"}').status == 400


def test_adapters_come_and_go_while_others_serve(pod: Any, adapters: dict[str, Path]) -> None:
    a, b = (pod.entry(name, adapters[name]) for name in ("a", "b"))
    next_set(pod, a)
    before = pod.text("a")
    assert pod.complete("b").status == 404
    next_set(pod, a, b)
    assert pod.text("b") != before, "a request waits for the adapter"
    assert pod.text("a") == before
    next_set(pod, a)
    assert pod.complete("b").status == 404
    wait_until(lambda: pod.report("b") is None)


def test_more_adapters_than_places_take_turns(pod: Any, adapters: dict[str, Path]) -> None:
    entries = [pod.entry(name, path) for name, path in adapters.items()]
    next_set(pod, *entries)
    wait_until(lambda: all(pod.report(name).ready for name in adapters))
    texts = {name: pod.text(name) for name in adapters}
    assert len(set(texts.values())) == 3
    with ThreadPoolExecutor(9) as threads:
        again = list(threads.map(pod.text, list(adapters) * 3))
    assert again == [texts[name] for name in adapters] * 3
    states = [pod.report(name).state.value for name in adapters]
    assert states.count("Mounted") <= 2


def test_pinned_adapters_are_never_displaced(pod: Any, adapters: dict[str, Path]) -> None:
    entries = [pod.entry(name, path, pinned=name == "a") for name, path in adapters.items()]
    next_set(pod, *entries)
    wait_until(lambda: all(pod.report(name).ready for name in adapters))
    for name in ("b", "c", "b", "c"):
        pod.text(name)
        assert pod.report("a").state == "Mounted"


def test_when_pinned_adapters_fill_every_place_the_rest_is_told(pod: Any, adapters: Any) -> None:
    entries = [pod.entry(name, path, pinned=name != "c") for name, path in adapters.items()]
    next_set(pod)
    next_set(pod, *entries)
    wait_until(lambda: pod.report("c").fault is not None)
    assert pod.report("c").fault.code == "AllPlacesPinned"
    assert "spec.engine.maxMountedAdapters" in pod.report("c").fault.message
    assert pod.complete("c").status == 400
    next_set(pod, *entries[1:])
    assert pod.complete("c").status == 200, "a set that pins fewer brings a way out"


def test_a_scale_is_a_matter_of_the_next_request(pod: Any, adapters: dict[str, Path]) -> None:
    next_set(pod, pod.entry("a", adapters["a"], scale=0.0))
    assert pod.text("a") == pod.text("tiny")
    next_set(pod, pod.entry("a", adapters["a"]))
    assert pod.text("a") != pod.text("tiny")


def test_a_name_moves_to_new_bytes_without_a_gap(pod: Any, adapters: dict[str, Path]) -> None:
    old, new = pod.entry("a", adapters["a"]), pod.entry("a", adapters["b"])
    next_set(pod, old)
    texts, statuses, moved = {old.digest: pod.text("a")}, set(), threading.Event()

    def ask() -> set[tuple[str, str]]:
        seen = set()
        while not moved.is_set():
            reply = pod.complete("a")
            statuses.add(reply.status)
            seen.add((reply.headers.get("x-graft-adapter-digest", ""), reply.json["choices"][0]["text"]))
        return seen

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        next_set(pod, new)
        wait_until(lambda: pod.complete("a").headers["x-graft-adapter-digest"] == new.digest)
        moved.set()
        seen = set().union(*(future.result() for future in asking))
    texts[new.digest] = pod.text("a")
    assert statuses == {200}
    assert seen <= set(texts.items()), "each answer is of exactly one version"


def test_a_bad_new_version_leaves_the_old_one_serving(pod: Any, adapters: dict[str, Path]) -> None:
    good = pod.entry("a", adapters["a"])
    next_set(pod, good)
    wait_until(lambda: pod.complete("a").headers["x-graft-adapter-digest"] == good.digest)
    text = pod.text("a")
    next_set(pod, good.model_copy(update={"digest": "sha256:" + "1" * 64, "source": Source(uri="pvc://shelf/gone")}))
    wait_until(lambda: pod.report("a").fault is not None)
    assert (pod.report("a").state, pod.report("a").fault.code) == ("Failed", "NotFound")
    assert pod.text("a") == text
    assert pod.probe("/readyz") == 200


def test_a_version_that_does_not_answer_its_check_never_takes_the_name(pod: Any, adapters: dict[str, Path]) -> None:
    entry = pod.entry("a", adapters["a"])
    old, new = entry, entry.model_copy(update={"digest": pod.entry("b", adapters["b"]).digest})
    new = new.model_copy(update={"source": pod.entry("b", adapters["b"]).source, "serving": old.wanted})
    next_set(pod, old)
    answers = {"a": pod.text("a")}
    next_set(pod, old, pod.entry("b", adapters["b"]))
    answers["b"] = pod.text("b")
    assert answers["a"] != answers["b"]

    def checked(text: str) -> AdapterReport:
        """Put the new version with a check in force, and wait until something has come of it."""
        check = AnswerCheck(prompt="hello", equals=text, max_tokens=8)
        next_set(pod, new.model_copy(update={"check": check}))
        wait_until(lambda: pod.report("a").state not in {"Fetching", "Checking"})
        report: AdapterReport = pod.report("a")
        return report

    failed = checked(answers["a"])
    assert failed.fault is not None
    assert (failed.state, failed.fault.code, failed.serving) == ("Failed", "CheckFailed", old.digest)
    assert f"answers its check with {answers['b']!r}, expected {answers['a']!r}" in failed.fault.message
    assert pod.text("a") == answers["a"]
    passed = checked(answers["b"])
    assert (passed.ready, passed.fault, passed.serving) == (True, None, old.digest)
    assert pod.text("a") == answers["a"], "until a set moves the name"
    next_set(
        pod,
        new.model_copy(
            update={"serving": None, "check": AnswerCheck(prompt="hello", equals=answers["b"], max_tokens=8)}
        ),
    )
    assert pod.text("a") == answers["b"]
    next_set(pod, old.model_copy(update={"name": "c", "check": AnswerCheck(message="hello", contains="x")}))
    reply = pod.complete("c")
    assert (reply.status, reply.json["error"]["code"]) == (400, "CheckFailed")


def test_files_that_come_late_are_found(pod: Any, adapters: dict[str, Path]) -> None:
    source = Source(uri="pvc://shelf/late")
    there = pod.entry("a", adapters["c"])
    next_set(pod, there.model_copy(update={"name": "late", "source": source, "digest": there.digest}))
    late = there.model_copy(update={"name": "later", "digest": "sha256:" + "2" * 64, "source": source})
    next_set(pod, late)
    wait_until(lambda: pod.report("later").fault is not None)
    assert pod.report("later").fault.code == "NotFound"
    shutil.copytree(adapters["c"], pod.shelf / "late")
    wait_until(lambda: pod.report("later").fault.code == "DigestMismatch")


def test_resolving_gives_a_digest_or_a_fault(pod: Any, adapters: dict[str, Path]) -> None:
    def resolve(uri: str) -> Resolution:
        request = ResolveRequest(source=Source(uri=uri))
        reply = pod.control("POST", "/resolve", request.canonical_json())
        assert reply.status == 200, reply.content
        return Resolution.read(reply.content)

    entry = pod.entry("a", adapters["a"])
    assert resolve(entry.source.uri).digest == entry.digest
    for uri, code in (
        ("pvc://shelf/nothing", "NotFound"),
        ("pvc://shelf/base", "NotAnAdapter"),
        ("pvc://shelf/../../etc", "UnsafeFile"),
        ("pvc://elsewhere/a", "SourceNotDeclared"),
        ("file:///etc", "SourceNotDeclared"),
        ("s3://someone/something", "SourceNotDeclared"),
        ("hf://someone", "NotFound"),
    ):
        resolution = resolve(uri)
        assert resolution.digest is None
        assert resolution.fault is not None
        assert resolution.fault.code == code, uri


def test_a_dry_run_tells_what_a_mount_would(pod: Any, adapters: dict[str, Path], make_adapter: Any, drift: Any) -> None:
    def inspect(uri: str) -> Any:
        return pod.inspect(Source(uri=uri))

    entry = pod.entry("a", adapters["a"])
    found = inspect(entry.source.uri)
    assert (found.facts.method, found.digest, found.fault) == ("LORA", entry.digest, None)
    assert (found.facts.remapped, found.unchecked) == (None, (Check.TRIAL,))
    before = pod.status()
    drifted = drift(make_adapter("drifted", target_modules=["q_proj", "v_proj"]))
    shutil.copytree(drifted, pod.shelf / "drifted")
    moved = inspect("pvc://shelf/drifted")
    assert (moved.fault, moved.facts.remapped) == (None, "nothing → model at the start of modules' names")
    narrow = make_adapter("narrow")
    weights = load_file(narrow / "adapter_model.safetensors")
    name = min(weights)
    weights[name] = weights[name][:, :-1].contiguous()
    save_file(weights, narrow / "adapter_model.safetensors")
    shutil.copytree(narrow, pod.shelf / "narrow")
    refused = inspect("pvc://shelf/narrow")
    assert refused.fault is not None
    assert refused.fault.code == "ShapeMismatch"
    assert refused.facts.rank == 4
    assert refused.unchecked == tuple(Check)
    assert pod.status().adapters == before.adapters  # nothing is mounted by it
    next_set(pod, entry, pod.entry("drifted", drifted))
    assert (
        wait_until(lambda: pod.report("drifted").ready and pod.report("drifted")).facts.remapped == moved.facts.remapped
    )


def test_the_long_poll_brings_changes_only(pod: Any, adapters: dict[str, Path]) -> None:
    a, b = (pod.entry(name, adapters[name]) for name in ("a", "b"))
    next_set(pod, a)
    wait_until(lambda: pod.report("a").ready)
    everything = pod.status()
    assert [report.name for report in everything.adapters] == ["a"]
    boot, since = everything.boot_id, everything.sequence
    started = time.monotonic()
    assert pod.status(boot, since, wait=1) is None
    assert time.monotonic() - started >= 1
    with ThreadPoolExecutor(1) as threads:
        polling = threads.submit(pod.status, boot, since, 20)
        next_set(pod, a, b)
        changes = polling.result()
    assert "b" in [report.name for report in changes.adapters]
    assert "a" not in [report.name for report in changes.adapters]
    next_set(pod, a)
    removed = wait_until(lambda: [r for r in pod.status(boot, changes.sequence, 5).adapters if r.removed])
    assert [report.name for report in removed] == ["b"]
    assert [report.name for report in pod.status("another-boot", 10**9, 20).adapters] == ["a"]


def test_running_answers_end_on_an_adapter_that_was_removed(pod: Any, adapters: Any) -> None:
    next_set(pod, pod.entry("a", adapters["a"]))
    with pod.stream("a") as response:
        response.readline()
        os.kill(pod.engine_pid, signal.SIGSTOP)
        next_set(pod)
        assert pod.complete("a").status == 404
        assert pod.report("a").state == "Draining"
        os.kill(pod.engine_pid, signal.SIGCONT)
        rest = response.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in rest
    wait_until(lambda: pod.report("a") is None)


def test_past_its_time_an_answer_on_a_removed_adapter_is_cut_off(pod: Any, adapters: Any) -> None:
    next_set(pod, pod.entry("a", adapters["a"]))
    with pod.stream("a") as response:
        response.readline()
        os.kill(pod.engine_pid, signal.SIGSTOP)
        try:
            next_set(pod)
            started = time.monotonic()
            rest = response.read()
        finally:
            os.kill(pod.engine_pid, signal.SIGCONT)
    assert 4 < time.monotonic() - started < 10, "drainSeconds is 5 here"
    assert b'"code":"model_not_found"' in rest


def test_readiness_waits_for_the_set_and_for_each_inline_adapter(
    make_pod: Callable[..., Any], adapters: dict[str, Path]
) -> None:
    """No adapter set at all; then one without a digest; then one whose source can't be resolved."""
    fresh = make_pod()
    fresh.start()
    wait_until(lambda: fresh.probe("/startupz") == 200)
    assert fresh.probe("/readyz") == 503
    entry = fresh.entry("a", adapters["a"])
    attached = fresh.entry("b", adapters["b"], digest=None, inline=False)
    next_set(fresh, entry.model_copy(update={"digest": None}), attached)
    assert fresh.report("a").state == "Unresolved"
    assert fresh.probe("/readyz") == 503
    fault = Fault(code="NotFound", message="nothing there\n\nhint: look again")
    next_set(fresh, entry, fresh.entry("c", adapters["c"], digest=None, fault=fault), attached)
    wait_until(lambda: fresh.probe("/readyz") == 200)
    reply = fresh.complete("c")
    assert (reply.status, reply.json["error"]["message"]) == (400, fault.message)
    next_set(fresh, entry, fresh.entry("new", adapters["b"], digest=None))
    assert fresh.probe("/readyz") == 200, "a later set never takes readiness away"


def test_readiness_waits_for_what_a_roll_requires_whatever_its_fault(
    make_pod: Callable[..., Any], adapters: dict[str, Path]
) -> None:
    fresh = make_pod()
    fresh.start()
    wait_until(lambda: fresh.probe("/startupz") == 200)
    faulty = fresh.entry("a", adapters["a"], digest="sha256:" + "0" * 64)
    next_set(fresh, faulty.model_copy(update={"required": True}))
    wait_until(lambda: fresh.report("a").fault is not None)
    assert fresh.probe("/readyz") == 503
    next_set(fresh, faulty)
    wait_until(lambda: fresh.probe("/readyz") == 200)


def test_after_a_kill_a_pod_comes_back_with_what_it_was_told(pod: Any, adapters: dict[str, Path]) -> None:
    """Last in this module. The mounted set is older than the pushed one; nobody pushes again."""
    entries = [pod.entry(name, adapters[name]) for name in ("a", "c")]
    current = next_set(pod, *entries)
    boot, texts = pod.status().boot_id, [pod.text("a"), pod.text("c")]
    pod.kill()
    pod.start()
    pod.wait_ready()
    assert pod.status().boot_id != boot
    assert pod.status().adapter_set.generation == current.generation
    assert [pod.text("a"), pod.text("c")] == texts
