"""A chat template may take neither the process that renders it for long nor anything of those that wait."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.tokenizing import worker
from graft_runtime.tokenizing.rendering import MAX_PROCESSES, Renderer, TemplateFaultError
from graft_runtime.tokenizing.spawner import Spawner

from tests.support import cases, random_templates
from tests.support.waiting import wait_until

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
LASTING = "{% for a in range(900) %}{% for b in range(900) %}{% endfor %}{% endfor %}{{ messages[0].content }}"


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


def test_a_template_that_takes_long_lets_a_pod_go_first_that_lets_others_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    niceness = os.getpriority(os.PRIO_PROCESS, 0) + 3
    with contextlib.closing(Renderer()) as renderer:
        with monkeypatch.context() as patched:
            patched.setattr(worker, "SLOW_SECONDS", 0)
            patched.setattr(os, "getpriority", lambda *_: niceness)
            assert renderer.render(LASTING, HI, {}) == "hi"
        (process,) = renderer.process_ids
        assert os.getpriority(os.PRIO_PROCESS, process) == niceness + worker.SLOW_NICENESS


def test_a_template_keeps_its_process_and_no_more_are_kept_than_may_be() -> None:
    renderer = Renderer()
    try:
        for _ in range(2):
            assert renderer.render("{{ messages[0].content }}", HI, {}) == "hi"
        (first,) = renderer.process_ids
        for number in range(MAX_PROCESSES):
            assert renderer.render(f"{number}", HI, {}) == str(number)
        assert len(renderer.process_ids) == MAX_PROCESSES
        assert first not in renderer.process_ids
    finally:
        renderer.close()
    assert renderer.process_ids == []


def test_whoever_ends_with_the_process_that_starts_others_is_rendered_again() -> None:
    parent = Spawner()
    renderer = Renderer(parent=parent)
    assert renderer.render("one", HI, {}) == "one"
    assert parent.process_id is not None
    os.kill(parent.process_id, signal.SIGKILL)
    assert [renderer.render(text, HI, {}) for text in ("one", "two")] == ["one", "two"]
    renderer.close()
    parent.close()


def test_the_process_that_the_others_are_forks_of_has_one_thread() -> None:
    parent = Spawner()
    for workers in (Renderer(parent=parent), Renderer(parent=parent)):
        assert workers.render("one", HI, {}) == "one"
        workers.close()
    assert os.listdir(f"/proc/{parent.process_id}/task") == [str(parent.process_id)]
    parent.close()


def test_a_process_that_others_have_ended_is_not_its_template_s_fault(renderer: Renderer) -> None:
    template = "{{ messages[0].content }}, and nothing else"
    assert renderer.render(template, HI, {}) == "hi, and nothing else"
    ended = renderer.process_ids[-1]
    os.kill(ended, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{ended}"))
    assert renderer.render(template, HI, {}) == "hi, and nothing else"
    assert renderer.process_ids[-1] != ended


def test_without_a_process_there_is_no_capacity_and_the_next_one_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Spawner()
    renderer = Renderer(parent=parent)
    with monkeypatch.context() as patch:
        patch.setattr(parent, "spawn", Mock(side_effect=BlockingIOError("no more processes")))
        with pytest.raises(GraftError, match="can't be started: no more processes") as caught:
            renderer.render("one", HI, {})
    assert caught.value.code == "NoCapacity"
    assert renderer.render("one", HI, {}) == "one"
    renderer.close()
    parent.close()


def test_a_pod_with_many_connections_renders() -> None:
    renderer = Renderer()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    taken = [os.dup(0) for _ in range(1100)]
    try:
        assert renderer.render("{{ messages[0].content }}", HI, {}) == "hi"
    finally:
        for descriptor in taken:
            os.close(descriptor)
        renderer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_template_that_takes_long_keeps_no_other_waiting() -> None:
    renderer, told = Renderer(seconds=3), list[str]()

    def render(template: str) -> None:
        with contextlib.suppress(GraftError):
            renderer.render(template, HI, {})
        told.append(template)

    with ThreadPoolExecutor() as threads:
        for template in (GREEDY["a power"], GREEDY["loops without end"]):
            threads.submit(render, template)
        wait_until(lambda: len(renderer.process_ids) == 2)
        for _ in range(20):
            render("{{ messages[0].content }}")
        assert len(told) == 20
    renderer.close()


def test_random_templates_end_no_renderer_and_change_no_other_s_answer() -> None:
    renderer = Renderer(seconds=1)
    told: Counter[str] = Counter()
    for seed in range(cases.PLANNED["chat templates"]):
        try:
            renderer.render(random_templates.template(random.Random(seed)), HI, {"bos_token": "<s>"})
            told["rendered"] += 1
        except TemplateFaultError:
            told["refused"] += 1
        except GraftError as fault:
            told[fault.code] += 1
        if seed % 10 == 0:
            assert renderer.render("{{ messages[0].content }}", HI, {}) == "hi", seed
    renderer.close()
    cases.tried("chat templates", told.total())
    assert min(told["rendered"], told["refused"]) > told.total() / 20, told
