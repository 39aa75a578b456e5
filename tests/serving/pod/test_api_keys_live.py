"""A pod that asks for keys, over HTTP and with OpenAI's client: names, rates, and keys that change while it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.waiting import wait_until

KEY, ALL, LATER = (f"sk-{letter * 64}" for letter in "abc")


def put(directory: Path, name: str, key: str, *models: str, **more: Any) -> None:
    """As the kubelet does: the file is whole when it has its name."""
    sha256 = hashlib.sha256(key.encode()).hexdigest()
    (directory / f".{name}").write_text(json.dumps({"sha256": sha256, "models": models, **more}))
    (directory / f".{name}").rename(directory / name)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    put(tmp_path, "web", KEY, "sql", requestsPerMinute=60_000)
    put(tmp_path, "batch", ALL, "*")
    return tmp_path


def test_a_pod_answers_those_alone_who_have_a_key(
    make_pod: Callable[..., Any], make_adapter: Callable[..., Path], keys: Path
) -> None:
    pod = make_pod(composition=True)
    pod.mount_set(pod.set_of(1, *(pod.entry(name, make_adapter(name)) for name in ("sql", "chat"))))
    pod.start("--api-keys-directory", str(keys))
    pod.wait_ready()
    clients = {
        key: openai.OpenAI(base_url=f"http://{pod.address}:8000/v1", api_key=key, max_retries=0)
        for key in (KEY, ALL, LATER)
    }

    def ask(key: str, model: str, **more: Any) -> Any:
        return clients[key].completions.create(model=model, prompt="hello", max_tokens=2, temperature=0, **more)

    assert pod.complete("sql").status == 401
    assert pod.get("/v1/models").status == 401
    assert pod.ask("GET", "/").status == 200, "the page holds nothing of the pool's"
    with pytest.raises(openai.AuthenticationError, match="no API key"):
        ask(LATER, "sql")
    assert {model.id for model in clients[ALL].models.list()} == {"tiny", "sql", "chat"}
    assert [model.id for model in clients[KEY].models.list()] == ["sql"]
    assert ask(KEY, "sql").choices[0].text == ask(ALL, "sql").choices[0].text
    for model in ("chat", "tiny", "nothing"):
        with pytest.raises(openai.PermissionDeniedError, match="may not use"):
            ask(KEY, model)
    both = {"adapters": [{"name": "sql"}, {"name": "chat"}]}
    assert ask(ALL, "tiny", extra_body=both).choices
    with pytest.raises(openai.PermissionDeniedError):
        ask(KEY, "tiny", extra_body=both)
    with pytest.raises(openai.NotFoundError):
        ask(ALL, "nothing")

    put(keys, "web", LATER, "sql", requestsPerMinute=1)
    wait_until(lambda: _status(pod, LATER) in {200, 429})
    assert _status(pod, KEY) == 401
    with pytest.raises(openai.RateLimitError) as limited:
        ask(LATER, "sql")
    assert 0 < int(limited.value.response.headers["retry-after"]) <= 60

    metrics = pod.get("/metrics").content.decode()
    assert 'graft_key_requests_total{key="web",status="403"} 4.0' in metrics
    assert 'graft_key_tokens_total{key="batch",kind="generated"}' in metrics
    assert not any(key in pod.log for key in (KEY, ALL, LATER))
    for client in clients.values():
        client.close()


def _status(pod: Any, key: str) -> int:
    return int(pod.get_with_key("/v1/models", key).status)
