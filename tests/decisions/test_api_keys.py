"""Keys of clients: who has one, which names it opens, how often, and that no route answers without."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from graft_runtime.answering.asked import NamedAdapter, TextRequest, Texts
from graft_runtime.answering.callers import ANYBODY, Caller
from graft_runtime.answering.models import Models
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig, RuntimeConfig
from graft_runtime.errors import GraftError
from graft_runtime.http import api_keys
from graft_runtime.http.api_keys import ApiKeys, read_keys
from graft_runtime.http.app import api_app
from graft_runtime.pod.metrics import Metrics
from prometheus_client import generate_latest
from starlette.routing import Route

from tests.support.waiting import until

KEY, OTHER = "sk-" + "a" * 64, "sk-" + "b" * 64


def entry(key: str, *models: str, **more: Any) -> str:
    return json.dumps({"sha256": hashlib.sha256(key.encode()).hexdigest(), "models": models, **more})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "web").write_text(entry(KEY, "sql", requestsPerMinute=2))
    (tmp_path / "batch").write_text(entry(OTHER, "*"))
    (tmp_path / "..data").write_text("the kubelet's")
    return tmp_path


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
async def keys(directory: Path) -> ApiKeys:
    """Keys of the directory, at a clock that stands."""
    made = ApiKeys(directory, Clock())
    made.take(*read_keys(directory))
    return made


def accepts(keys: ApiKeys, key: str) -> bool:
    try:
        return keys.caller(f"Bearer {key}") is not None
    except GraftError:
        return False


def use(keys: ApiKeys, authorization: str) -> None:
    keys.count(keys.caller(authorization))


def refused(keys: ApiKeys, authorization: str) -> GraftError:
    with pytest.raises(GraftError) as caught:
        use(keys, authorization)
    return caught.value


async def test_a_key_is_known_by_its_hash(keys: ApiKeys) -> None:
    assert keys.caller(f"Bearer {KEY}") == Caller("web", frozenset({"sql"}))
    assert keys.caller(f"bearer  {OTHER}") == Caller("batch", frozenset({"*"}))


@pytest.mark.parametrize(
    "sent",
    [
        *("", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xff"),
        f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}",
    ],
)
async def test_what_is_no_key_opens_nothing(keys: ApiKeys, sent: str) -> None:
    fault = refused(keys, sent)
    assert (fault.code, fault.code.http_status) == ("Unauthenticated", 401)
    assert "sk-" not in fault.message


async def test_a_key_has_its_requests_a_minute_and_gets_the_next_in_time(keys: ApiKeys) -> None:
    clock: Any = keys._clock
    for _ in range(2):
        use(keys, f"Bearer {KEY}")
    fault = refused(keys, f"Bearer {KEY}")
    assert (fault.code, fault.code.http_status, fault.retry_after) == ("RateLimited", 429, 30)
    assert accepts(keys, OTHER)
    clock.seconds = 29
    assert refused(keys, f"Bearer {KEY}").retry_after == pytest.approx(1)
    clock.seconds = 30
    use(keys, f"Bearer {KEY}")
    clock.seconds = 3000
    for _ in range(2):
        use(keys, f"Bearer {KEY}")
    assert refused(keys, f"Bearer {KEY}").code == "RateLimited", "what was not used is not saved up"


async def test_keys_are_exchanged_without_a_restart(
    keys: ApiKeys, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "FOLLOW_SECONDS", 0.001)
    new = "sk-" + "c" * 64
    following = asyncio.create_task(keys.follow())
    (directory / "web-2").write_text(entry(new, "sql"))
    await until(lambda: accepts(keys, new))
    assert accepts(keys, KEY), "both, until the old one goes"
    (directory / "web").unlink()
    await until(lambda: not accepts(keys, KEY))
    assert accepts(keys, new)
    following.cancel()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"sha256": "x", "models": ["*"]}',
        entry(KEY),
        entry(KEY, "*", requestsPerMinute=0),
        entry(KEY, "*", more=1),
        " " * (1 << 17) + entry(KEY, "*"),
    ],
)
async def test_an_entry_that_is_none_opens_nothing_and_is_told(
    directory: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "web").write_text(content)
    made = ApiKeys(directory)
    made.take(*read_keys(directory))
    assert (accepts(made, KEY), accepts(made, OTHER)) == (False, True)
    assert "`web` is no API key" in caplog.text
    assert hashlib.sha256(KEY.encode()).hexdigest() not in caplog.text


async def test_where_there_is_no_secret_there_is_no_key(tmp_path: Path) -> None:
    made = ApiKeys(tmp_path / "nowhere")
    made.take(*read_keys(tmp_path / "nowhere"))
    assert not accepts(made, OTHER)


class Served:
    """The adapters of a pod, by name."""

    default_model: str | None = None

    def is_served(self, name: str) -> bool:
        return name in {"sql", "chat"}

    def names(self) -> Iterator[str]:
        return iter(("sql", "chat"))

    def unknown(self, name: str, field: str = "model") -> GraftError:
        return GraftError("UnknownModel", name, field=field)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("caller", "model", "parts", "outcome"),
    [
        (Caller("k", frozenset({"sql"})), "sql", (), None),
        (Caller("k", frozenset({"sql"})), "chat", (), "Forbidden"),
        (Caller("k", frozenset({"sql"})), "base", (), "Forbidden"),
        (Caller("k", frozenset({"sql"})), "nothing", (), "Forbidden"),
        (Caller("k", frozenset({"*"})), "nothing", (), "UnknownModel"),
        (Caller("k", frozenset({"base", "sql"})), "base", ("sql", "chat"), "Forbidden"),
        (Caller("k", frozenset({"sql", "chat"})), "base", ("sql", "chat"), "Forbidden"),
        (Caller("k", frozenset({"base", "sql", "chat"})), "base", ("sql", "chat"), None),
        (ANYBODY, "chat", (), None),
    ],
)
def test_a_key_opens_its_own_names_in_sums_as_well(
    caller: Caller, model: str, parts: tuple[str, ...], outcome: str | None
) -> None:
    served: Any = Served()
    models = Models("base", served, composition=True)
    adapters = [NamedAdapter(part, 1.0) for part in parts]
    request = TextRequest(Texts(["x"]), caller, model=model, adapters=adapters)
    if outcome is None:
        assert models.resolve(request)[0] == model
        return
    with pytest.raises(GraftError) as caught:
        models.resolve(request)
    assert caught.value.code == outcome


async def ask(app: Any, method: str, path: str, *headers: tuple[bytes, bytes]) -> tuple[int, dict[bytes, bytes], Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": list(headers)}
    await app(scope | {"query_string": b"", "http_version": "1.1", "root_path": ""}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


async def test_no_route_answers_without_a_key(keys: ApiKeys) -> None:
    class Base:
        context_length = 64

    class Engine:
        encode = None

    class Places:
        page = True

    class Pod:
        base, engine, places = Base(), Engine(), Places()
        adapters, metrics, leaving = Served(), Metrics("base"), False
        config = RuntimeConfig(pool_uid="pool", base_model=BaseModelConfig(name="base", source=Source(uri="pvc://a/b")))

    pod: Any = Pod()
    app: Any = api_app(pod, Models("base", pod.adapters, composition=True), None, None, keys)  # type: ignore[arg-type]
    inner = app
    while not isinstance(inner, FastAPI):
        inner = inner._app
    routes = [(method, route.path) for route in _routes(inner.routes) for method in route.methods or ()]
    assert {path for _, path in routes} >= {"/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/adapters"}
    for method, path in [*routes, ("GET", "/nowhere")]:
        status, headers, body = await ask(app, method, path.replace("{name}", "sql"))
        assert (status, headers[b"www-authenticate"]) == (401, b"Bearer"), path
        assert (body["error"]["type"], body["error"]["code"]) == ("authentication_error", "Unauthenticated")
    of_web = (b"authorization", f"Bearer {KEY}".encode())
    status, _, body = await ask(app, "GET", "/v1/models", of_web)
    assert (status, [model["id"] for model in body["data"]]) == (200, ["sql"])
    status, _, body = await ask(app, "GET", "/v1/models/chat", of_web)
    assert (status, body["error"]["type"]) == (403, "permission_error")
    status, headers, _ = await ask(app, "GET", "/v1/models", of_web)
    assert (status, headers[b"retry-after"]) == (429, b"30")
    assert 'graft_key_requests_total{key="web",status="429"} 1.0' in generate_latest(pod.metrics.registry).decode()
    text = generate_latest(pod.metrics.registry).decode()
    assert 'graft_key_requests_total{key="web",status="200"} 1.0' in text
    assert f'graft_key_requests_total{{key="other",status="401"}} {len(routes) + 1}.0' in text


def _routes(routes: Any) -> Iterator[Route]:
    for route in routes:
        if isinstance(route, Route):
            yield route
        else:
            yield from _routes(route.original_router.routes)  # how FastAPI keeps a router that was included
