"""Large bodies: a process of their own makes the same of them as the pod's own, and says the same against them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.http import bodies
from graft_runtime.http.bodies import holds_more, parse_body
from graft_runtime.http.large_bodies import FEW_VALUES, LargeBodies
from graft_runtime.http.routes.chat import ChatBody
from graft_runtime.http.routes.completions import CompletionBody

MESSAGES = [{"role": "user", "content": 'a, "b" \\ [é😀]\n' * FEW_VALUES}] * 2


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"model": "a", "prompt": [65] * FEW_VALUES * 2}, CompletionBody),
        ({"model": "a", "messages": MESSAGES, "temperature": 0.5}, ChatBody),
        ({"model": "a", "prompt": "b" * (1 << 20)}, CompletionBody),
    ],
    ids=["ids", "messages", "one text"],
)
async def test_a_large_body_is_what_it_is_elsewhere(body: dict[str, Any], model: type[Any]) -> None:
    content = json.dumps(body).encode()
    assert await LargeBodies().parse(content, model.of) == parse_body(content, model.of)


async def test_a_long_text_is_not_searched_for_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of mebibytes lets no other thread go on."""
    monkeypatch.setattr(bodies, "_STRING", None)
    content = json.dumps({"model": "a", "prompt": "b" * (8 << 20)}).encode()
    assert parse_body(content, CompletionBody.of).model == "a"


@pytest.mark.parametrize(("most", "more"), [(3, True), (4, False)])
def test_marks_are_counted_as_far_as_it_matters(most: int, more: bool) -> None:
    assert holds_more(b"a,b[c{d,e", (b",", b"[", b"{"), most) is more


async def test_a_large_body_is_refused_as_elsewhere() -> None:
    content = json.dumps({"model": "a", "prompt": [65] * FEW_VALUES * 2, "top_p": 7}).encode()
    with pytest.raises(GraftError) as there:
        await LargeBodies().parse(content, CompletionBody.of)
    with pytest.raises(GraftError) as here:
        parse_body(content, CompletionBody.of)
    assert (str(there.value), there.value.field) == (str(here.value), here.value.field)


async def test_an_integer_that_no_machine_word_holds_is_refused() -> None:
    schema = {"type": "integer", "enum": [*range(FEW_VALUES * 2), 10**400]}
    content = json.dumps({"model": "a", "prompt": "b", "guided_json": schema}).encode()
    with pytest.raises(GraftError, match="an integer of more than 64 bits"):
        await LargeBodies().parse(content, CompletionBody.of)
