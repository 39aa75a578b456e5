"""Bodies and messages from strangers, by the thousand: what they are, or one short typed error, and nothing else."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from graft_operator.clients.bodies import read_json
from graft_operator.resource.parsing import parse_spec
from graft_runtime.answering.callers import ANYBODY
from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.config import RuntimeConfig
from graft_runtime.contract.control import ResolveRequest
from graft_runtime.contract.status import RuntimeStatus
from graft_runtime.errors import GraftError
from graft_runtime.http.bodies import parse_body
from graft_runtime.http.faults import error_response
from graft_runtime.http.routes.chat import ChatBody
from graft_runtime.http.routes.completions import CompletionBody
from graft_runtime.http.routes.text import TextBody
from graft_runtime.http.routes.tokens import DetokenizeBody, TokenizeChat, TokenizeText
from pydantic import ValidationError

from tests.support import cases
from tests.support.random_requests import MESSAGES, ROUTES, body

PARTS = 8
"""Of the cases, each a test of its own, so that a failure names its seed soon."""
MODELS: dict[str, type[Any]] = {
    "completions": CompletionBody,
    "chat": ChatBody,
    "tokenize": TokenizeText,
    "tokenize a chat": TokenizeChat,
    "detokenize": DetokenizeBody,
}
READERS: dict[str, Callable[[bytes], object]] = {
    "set": AdapterSet.read,
    "resolve": ResolveRequest.read,
    "config": RuntimeConfig.read,
    "status": RuntimeStatus.read,
    "spec": lambda content: parse_spec(_object(read_json(content))),
}
MOST_ERROR_BYTES = 10_000


def test_a_run_tries_twenty_thousand_cases() -> None:
    assert sum(cases.PLANNED.values()) >= 20_000
    assert MODELS.keys() == ROUTES.keys()
    assert READERS.keys() == MESSAGES.keys()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_body_is_taken_or_refused_in_a_few_words(part: int) -> None:
    count = cases.PLANNED["bodies of requests"] // PARTS
    told: Counter[str] = Counter()
    for seed in range(part * count, (part + 1) * count):
        chance = random.Random(seed)
        route = chance.choice(list(ROUTES))
        content = body(chance, ROUTES[route])
        fault = _fault(partial(_asked, content, route), seed, content)
        told["taken" if fault is None else "refused"] += 1
        if isinstance(fault, GraftError):
            answer = error_response(fault)
            assert 400 <= answer.status_code < 500, (seed, fault)
            assert len(answer.body) < MOST_ERROR_BYTES, (seed, len(answer.body))
            assert json.loads(bytes(answer.body))["error"]["message"], seed
        else:
            assert fault is None, (seed, fault)
    cases.tried("bodies of requests", count)
    assert min(told["taken"], told["refused"]) > count // 20, told


def _asked(content: bytes, route: str) -> None:
    read = parse_body(content, MODELS[route].of)
    if isinstance(read, TextBody):
        assert read.asked(ANYBODY).answers >= 0


@pytest.mark.parametrize("part", range(PARTS))
def test_a_message_is_read_or_refused_in_a_few_words(part: int) -> None:
    count = cases.PLANNED["names and messages"] // PARTS
    told: Counter[str] = Counter()
    for seed in range(part * count, (part + 1) * count):
        chance = random.Random(seed)
        kind = chance.choice(list(MESSAGES))
        content = body(chance, MESSAGES[kind])
        for read in (READERS[kind], AdapterSet.from_gzip, read_json):
            fault = _fault(partial(read, content), seed, content)
            if isinstance(fault, GraftError):
                assert len(str(fault)) < MOST_ERROR_BYTES, (seed, len(str(fault)))
            told["taken" if fault is None else "refused"] += read is READERS[kind]
    cases.tried("names and messages", count)
    assert min(told["taken"], told["refused"]) > count // 20, told


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}  # the API server shows objects alone


def _fault(work: Callable[[], object], seed: int, content: bytes) -> Exception | None:
    """Return what callers expect to be raised. Fails on anything else."""
    try:
        work()
    except (GraftError, ValidationError, ValueError, EOFError, OSError) as fault:
        return fault
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {content[:300]!r}") from error
    return None
