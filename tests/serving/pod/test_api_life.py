"""A pod from its start to its end: probes, an engine that hangs or dies, clients that go away, SIGTERM."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig, EngineConfig
from graft_runtime.contract.status import BaseState

from tests.support.waiting import wait_until

logger = logging.getLogger(__name__)

LONG = {"model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 200, "stream": True}


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any]) -> Any:
    """For tests that leave it whole."""
    return _started(make_pod)


@pytest.fixture
def doomed_pod(make_pod: Callable[..., Any]) -> Any:
    """For tests that end it."""
    return _started(make_pod)


def _started(make_pod: Callable[..., Any], **config: Any) -> Any:
    options = {"adapter_startup_seconds": 0, "engine": EngineConfig(max_sequences=2, max_rank=16)}
    pod = make_pod(**(options | config))
    pod.start()
    pod.wait_ready()
    return pod


def metric(pod: Any, name: str) -> float:
    lines = pod.get("/metrics").content.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_both_ports_are_open_before_the_base_is_there(make_pod: Callable[..., Any], tiny_base: Path) -> None:
    base = BaseModelConfig(name="tiny", source=Source(uri="pvc://shelf/later"), dtype="float32")
    pod = make_pod(base_model=base, adapter_startup_seconds=0)
    pod.start()
    wait_until(lambda: pod.probe("/livez") == 200)
    assert pod.probe("/readyz") == 503
    reply = pod.complete("tiny")
    assert (reply.status, reply.json["error"]["code"]) == (503, "NotReady")
    assert pod.get("/v1/models").json["data"][0]["id"] == "tiny"
    wait_until(lambda: pod.status().base.fault is not None)
    assert pod.status().base.fault.code == "NotFound"
    assert pod.probe("/startupz") == 200, "a person must look: a restart would not help"
    pod.put("later", tiny_base)
    pod.wait_ready()
    assert pod.status().base.state is BaseState.SERVING
    assert pod.text("tiny")


def test_a_base_that_is_none_fails_with_a_reason(make_pod: Callable[..., Any]) -> None:
    base = BaseModelConfig(name="tiny", source=Source(uri="pvc://shelf/broken"), dtype="float32")
    pod = make_pod(base_model=base)
    broken = pod.shelf / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "no-such-family"}')
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    (broken / "tokenizer.json").write_text("{}")
    pod.start()
    wait_until(lambda: pod.probe("/startupz") == 200)
    assert pod.status().base.state is BaseState.FAILED
    assert pod.status().base.fault.code == "NotAModel"
    assert pod.probe("/readyz") == 503
    assert pod.probe("/livez") == 200


def test_a_base_without_a_tokenizer_json_is_served_all_the_same(make_pod: Callable[..., Any], tiny_base: Path) -> None:
    """It has GPT-2's vocab.json and merges.txt; the engine process converts them."""
    base = BaseModelConfig(name="tiny", source=Source(uri="pvc://shelf/slow"), dtype="float32")
    pod = make_pod(base_model=base, adapter_startup_seconds=0)
    pod.put("slow", tiny_base)
    slow = pod.shelf / "slow"
    vocabulary = json.loads((slow / "tokenizer.json").read_text())["model"]["vocab"]
    (slow / "tokenizer.json").unlink()
    (slow / "vocab.json").write_text(json.dumps(vocabulary))
    (slow / "merges.txt").write_text("#version: 0.2\n")
    config = json.loads((slow / "tokenizer_config.json").read_text())
    (slow / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    pod.start()
    pod.wait_ready()
    assert pod.text("tiny", prompt="hello") == pod.text("tiny", prompt=[71, 68, 75, 75, 78])
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    assert pod.post("/v1/chat/completions", chat).json["usage"]["prompt_tokens"] == 24


def test_http_answers_within_100_ms_while_the_engine_is_stopped(pod: Any) -> None:
    """19 of 20 answers: on a busy machine a single one may wait for a core."""
    with pod.stream("tiny") as response:
        response.readline()
        os.kill(pod.engine_pid, signal.SIGSTOP)
        try:
            times = sorted(_answer_times(pod, seconds=10))
        finally:
            os.kill(pod.engine_pid, signal.SIGCONT)
        assert response.read().endswith(b"data: [DONE]\n\n")
    assert times[len(times) * 19 // 20] < 0.1
    assert times[-1] < 1


def _answer_times(pod: Any, seconds: float) -> Iterator[float]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path in ("/livez", "/v1/models"):
            started = time.monotonic()
            assert pod.get(path).status == 200
            yield time.monotonic() - started


def test_when_the_engine_dies_the_pod_ends_and_says_so(doomed_pod: Any) -> None:
    with doomed_pod.stream("tiny") as response:
        response.readline()
        os.kill(doomed_pod.engine_pid, signal.SIGSTOP)
        os.kill(doomed_pod.engine_pid, signal.SIGKILL)
        assert b'"error"' in response.read(), "whoever waits is told"
    assert doomed_pod.process.wait(30) not in {0, None}
    assert "the engine process ended with status -9" in doomed_pod.log


def test_when_the_engine_dies_whoever_is_no_generation_yet_is_told_as_well(
    doomed_pod: Any, make_adapter: Callable[..., Path]
) -> None:
    """Two wait for an adapter to be mounted, the third has not sent all of its request."""
    os.kill(doomed_pod.engine_pid, signal.SIGSTOP)
    assert doomed_pod.push(doomed_pod.set_of(1, doomed_pod.entry("late", make_adapter("late")))).status == 200
    slow = http.client.HTTPConnection(doomed_pod.address, 8000, timeout=60)
    with ThreadPoolExecutor(2) as threads, contextlib.closing(slow):
        waiting = [threads.submit(doomed_pod.complete, "late", stream=streamed) for streamed in (False, True)]
        slow.request("POST", "/v1/completions", b"{", {"Content-Length": "100"})
        threading.Event().wait(0.5)  # the requests are on their way: no one could see them arrive
        os.kill(doomed_pod.engine_pid, signal.SIGKILL)
        response = slow.getresponse()
        answers = [(response.status, json.load(response))]
        answers += [(answer.result().status, answer.result().json) for answer in waiting]
    assert [(status, body["error"]["code"]) for status, body in answers] == [(503, "ShuttingDown")] * 3


def test_when_the_pod_dies_the_engine_ends(doomed_pod: Any) -> None:
    engine = doomed_pod.engine_pid
    doomed_pod.kill()
    wait_until(lambda: not Path(f"/proc/{engine}").exists() or _is_zombie(engine))


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    return True


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_frees_its_place(pod: Any, streamed: bool) -> None:
    """The engine is stopped meanwhile, so that no answer can end by itself."""
    gone, generated = (
        'graft_requests_total{adapter="tiny",route="completions",status="499"}',
        "graft_generated_tokens_total",
    )
    before, tokens = metric(pod, gone), metric(pod, generated)
    os.kill(pod.engine_pid, signal.SIGSTOP)
    try:
        connection = http.client.HTTPConnection(pod.address, 8000, timeout=60)
        body = json.dumps(LONG | {"stream": streamed})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        threading.Event().wait(0.5)  # the request is on its way: no one could see it arrive
        connection.close()
        wait_until(lambda: metric(pod, gone) == before + 1)
    finally:
        os.kill(pod.engine_pid, signal.SIGCONT)
    assert pod.text("tiny")
    wait_until(lambda: metric(pod, "graft_running_sequences") == 0)
    assert metric(pod, generated) < tokens + 100


@pytest.fixture(scope="module")
def patient_pod(make_pod: Callable[..., Any], tiny_base: Path) -> Any:
    """Its context is so long that no answer ends by itself while a test looks on."""
    base = BaseModelConfig(name="tiny", source=Source(uri="pvc://shelf/patient"), dtype="float32")
    engine = EngineConfig(max_sequences=4, max_rank=16, max_sequence_length=ENDLESS + 100)
    pod = make_pod(base_model=base, engine=engine, adapter_startup_seconds=0)
    pod.put("patient", tiny_base)
    config = pod.shelf / "patient" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": ENDLESS + 100}))
    pod.start()
    pod.wait_ready()
    return pod


ENDLESS = 8000
FREED_SECONDS = 1.0
BUSY_MACHINE = 5
"""How many times longer it may take while other work has the machine."""


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_frees_its_keys_and_values_within_a_second(patient_pod: Any, streamed: bool) -> None:
    pod = patient_pod
    connection = http.client.HTTPConnection(pod.address, 8000, timeout=60)
    body = json.dumps(LONG | {"stream": streamed, "max_tokens": ENDLESS, "prompt": ["hello"] * 4})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    with contextlib.ExitStack() as client:
        client.callback(connection.close)
        if streamed:
            client.enter_context(connection.getresponse()).readline()
        wait_until(lambda: metric(pod, "graft_running_sequences") == 4)
        assert metric(pod, "graft_reserved_tokens") >= 4 * len("hello")
    gone = time.monotonic()
    wait_until(lambda: metric(pod, "graft_reserved_tokens") == 0, seconds=FREED_SECONDS * BUSY_MACHINE)
    logger.info("free after %.3f s", time.monotonic() - gone)
    assert metric(pod, "graft_running_sequences") == 0
    assert metric(pod, "graft_generated_tokens_total") < 4 * ENDLESS, "it did not end by itself"


def test_too_many_requests_are_turned_away(pod: Any) -> None:
    """Two places, and 32 may wait for each: three quarters of 66 are one name's share, the rest is told at once."""
    refused = 'graft_requests_total{adapter="tiny",route="completions",status="429"}'
    before = metric(pod, refused)
    os.kill(pod.engine_pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(60) as threads:
            answers = [threads.submit(pod.complete, "tiny") for _ in range(60)]
            wait_until(lambda: metric(pod, refused) == before + 11)
            os.kill(pod.engine_pid, signal.SIGCONT)
            replies = [answer.result() for answer in answers]
    finally:
        os.kill(pod.engine_pid, signal.SIGCONT)
    assert [reply.status for reply in replies].count(200) == 49
    away = [reply for reply in replies if reply.status != 200]
    assert {(reply.status, reply.json["error"]["code"]) for reply in away} == {(429, "OverShare")}
    assert all("retry-after" in reply.headers for reply in away)


def test_at_the_end_of_the_grace_streams_end_with_an_error_event(make_pod: Callable[..., Any]) -> None:
    pod = _started(make_pod, drain_seconds=1)
    with pod.stream("tiny") as response:
        response.readline()
        os.kill(pod.engine_pid, signal.SIGSTOP)
        pod.process.send_signal(signal.SIGTERM)
        events = response.read().split(b"\n\n")
    assert json.loads(events[-2].strip().removeprefix(b"data: "))["error"]["code"] == "ShuttingDown"
    assert events[-1] == b"", "and no `[DONE]`, which would make a whole answer of it"
    assert pod.process.wait(20) == 0


CHAT_IN_ONE_PROCESS = """
import asyncio, json, os, signal, sys, urllib.request
from graft_runtime.http import server
from graft_runtime.__main__ import main

async def ask(address):
    def post(path, body=None):
        data = json.dumps(body).encode() if body else None
        port = 8002 if path == "/readyz" else 8000
        return urllib.request.urlopen(f"http://{address}:{port}{path}", data, timeout=60).read()
    async def ready():
        try:
            await asyncio.to_thread(post, "/readyz")
            return True
        except OSError:
            return False
    while not await ready():
        await asyncio.sleep(0.1)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
    answer = await asyncio.to_thread(post, "/v1/chat/completions", body)
    print(json.dumps([answer.decode(), sorted({name.split(".")[0] for name in sys.modules})]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

serve = server.serve
async def serve_and_ask(*arguments):
    asking = asyncio.create_task(ask(arguments[3]))
    return await asyncio.gather(serve(*arguments), asking)

import graft_runtime.commands.serve as program
program.serve = serve_and_ask
main(sys.argv[1:])
"""


def test_a_whole_chat_request_leaves_no_torch_in_the_api_process(make_pod: Callable[..., Any]) -> None:
    pod = make_pod(adapter_startup_seconds=0)
    arguments = [f"--{name}-directory={pod.directory / name}" for name in ("config", "keys", "cache", "state")]
    arguments += [f"--adapter-set-directory={pod.directory / 'adapter-set'}", "--pod-uid", "uid"]
    arguments += ["--bind-address", pod.address, "--source-mount", "shelf", str(pod.shelf)]
    ended = subprocess.run(
        [sys.executable, "-c", CHAT_IN_ONE_PROCESS, "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    answer, modules = json.loads(ended.stdout)
    assert answer.endswith("data: [DONE]\n\n")
    assert "transformers" in modules, "it tokenizes here"
    assert not {"torch", "kopf", "kubernetes", "peft"} & set(modules)
