"""What people use to ask OpenAI's API, each at its main job against a real pod."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture
def ask_pod(pod: Any, run_client: Callable[..., Any]) -> Callable[..., Any]:
    """`ask_pod(program, *arguments)`: runs a client on the pod's adapter; whatever it left is freed at its end."""

    def run(program: str, *arguments: Any) -> Any:
        told = run_client(program, f"http://{pod.address}:8000/v1", "plain", *arguments)
        wait_until(lambda: "\ngraft_reserved_tokens 0.0" in pod.get("/metrics").content.decode())
        return told

    return run


@pytest.mark.parametrize("program", ["openai_client", "langchain_client", "litellm_client", "llama_index_client"])
def test_a_client_chats_streams_calls_tools_and_reads_answers_in_a_form(pod: Any, ask_pod: Any, program: str) -> None:
    body = {"model": "plain", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 16}
    plain = pod.post("/v1/chat/completions", body | {"temperature": 0}).json["choices"][0]["message"]["content"]
    assert ask_pod(program)["text"] == plain


def test_instructor_gets_objects_in_each_of_its_modes(ask_pod: Any) -> None:
    assert set(ask_pod("instructor_client").values()) <= {"Ada", "Grace"}


def test_guidellm_completes(pod: Any, ask_pod: Any) -> None:
    totals = ask_pod("guidellm_client", pod.shelf / "base")
    assert totals == {"successful": 4, "incomplete": 0, "errored": 0, "total": 4, "tokens": 8.0}


def test_a_person_looks_at_the_page_in_a_browser(pod: Any, run_client: Callable[..., Any], tmp_path: Path) -> None:
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs the program `chromium`")
    assert pod.complete("plain").status == 200
    told = run_client("page", f"http://{pod.address}:8000/", "plain", chromium, tmp_path / "page.png")
    assert told["faults"] == told["elsewhere"] == []
    assert told["cells"][:4] == ["plain", "Mounted", "device", "LORA"]
    for name, answer in zip(("tiny", "plain"), told["answers"], strict=True):
        assert answer == pod.complete(name, told["prompt"], max_tokens=24).json["choices"][0]["text"]
    told_by_api = pod.complete("tiny", told["prompt"], max_tokens=1, logprobs=1).json["choices"][0]["logprobs"]
    ((token, logprob),) = told_by_api["top_logprobs"][0].items()
    shown = {json.loads(row[0]): row[1].strip() for row in told["tokens"]}
    assert shown[token] == f"{100 * math.exp(logprob):.1f} %"
