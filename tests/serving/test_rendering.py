"""A chat template may take neither the process that renders it for long nor anything of those that wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.tokenizing.rendering import Renderer, TemplateFaultError

HI = [{"role": "user", "content": "hi"}]
GREEDY = {
    "a power": "{{ 9**(9**9) }}",
    "a long text": "{{ 'a' * 4000000000 }}",
    "a wide field": "{{ '%4000000000d' % 1 }}",
    "filler text": "{{ lipsum(n=100000000) }}",
    "a text that doubles": "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "loops without end": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a text without end": "{% for a in range(99999) %}{% for b in range(99999) %}12345678{% endfor %}{% endfor %}",
}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    renderer = Renderer(seconds=1)
    yield renderer
    renderer.close()


@pytest.mark.parametrize("template", GREEDY.values(), ids=GREEDY)
def test_a_template_that_takes_too_much_is_unsafe_and_the_next_one_is_rendered(
    renderer: Renderer, template: str
) -> None:
    for _ in range(2):
        with pytest.raises(GraftError) as caught:
            renderer.render(template, HI, {})
        assert caught.value.code == "UnsafeFile"
    assert "a moment ago" in caught.value.message
    assert renderer.render("{{ messages[0].content }}{{ bos_token }}", HI, {"bos_token": "<s>"}) == "hi<s>"


def test_what_a_template_says_against_its_messages_is_told(renderer: Renderer) -> None:
    with pytest.raises(TemplateFaultError, match="no such role"):
        renderer.render("{{ raise_exception('no such role') }}", HI, {})


def test_a_process_that_was_started_ahead_renders() -> None:
    renderer = Renderer()
    renderer.start()
    ahead = renderer.process_id
    assert renderer.render("{{ messages[0].content }}", HI, {}) == "hi"
    assert renderer.process_id == ahead is not None
    renderer.close()
    assert renderer.process_id is None
