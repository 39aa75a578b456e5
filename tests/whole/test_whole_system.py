"""Chart, operator, runtime and Gemma on a real Kubernetes API: what a user gets, and what comes back from kills.

The tests share one pool. Each leaves it as it found it, but for the last, which takes it away.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import openai
import pytest
from graft_local import demo, helm
from graft_local.demo_client import complete, wait_until_routed
from graft_local.gemma import BASE_NAME

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.whole.conftest import Oracle, Pool

pytestmark = [pytest.mark.whole, pytest.mark.cluster, pytest.mark.timeout(900)]

QUESTION = "What is the sea?"
PROMPT = demo.PROMPT
TOKENS = 16
THREE = (BASE_NAME, *demo.FIRST)
FOUR = (*THREE, demo.FOURTH)
OPERATOR = f"deployment/{demo.RELEASE}-operator"


@pytest.fixture(scope="module")
def four(pool: Pool) -> Pool:
    """The pool with all four adapters."""
    pool.apply("changes/fourth-adapter.yaml")
    return pool


@pytest.fixture
def client(four: Pool) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{four.address}/v1", api_key="none", max_retries=0, timeout=120.0) as client:
        yield client


def answers_as_before(pool: Pool, oracle: Oracle, names: tuple[str, ...] = FOUR) -> None:
    for name in names:
        oracle.check(name, PROMPT, TOKENS, complete_text(pool, name))


def complete_text(pool: Pool, name: str, prompt: str = PROMPT) -> str:
    answer = complete(pool.address, name, prompt, max_tokens=TOKENS)
    assert answer.status == 200, answer.body
    return str(answer.body["choices"][0]["text"])


def test_what_was_applied_is_applied_again_without_a_change(pool: Pool) -> None:
    before = pool.pods()
    manifest = pool.manifest("gemma.yaml")
    generation = ("get", f"ad/{demo.POOL}", "-o", "jsonpath={.metadata.generation}")
    first = pool.kubectl(*generation)
    pool.kubectl("apply", "-f", "-", input=manifest)
    assert pool.kubectl("diff", "-f", "-", input=manifest) == ""
    assert pool.kubectl(*generation) == first
    assert pool.pods() == before


def test_a_fourth_adapter_comes_without_touching_a_pod(pool: Pool, request: pytest.FixtureRequest) -> None:
    before = pool.pods()
    assert complete(pool.address, demo.FOURTH, PROMPT).status == 404
    request.getfixturevalue("four")
    assert complete_text(pool, demo.FOURTH)
    assert pool.pods() == before


def test_an_adapter_that_a_team_attaches_answers_and_goes_with_its_object(pool: Pool, oracle: Oracle) -> None:
    before = pool.pods()
    (uri,) = pool.kubectl("get", f"ad/{demo.POOL}", "-o", "jsonpath={.spec.adapters[0].uri}").split()

    def attach(expected: str) -> None:
        adapter = {
            "apiVersion": "graft.dev/v1alpha1",
            "kind": "Adapter",
            "metadata": {"name": "guest"},
            "spec": {
                "adapterDeploymentName": demo.POOL,
                "uri": uri,
                "check": {"prompt": PROMPT, "contains": expected, "maxTokens": TOKENS},
            },
        }
        pool.kubectl("apply", "-f", "-", input=json.dumps(adapter))

    attach("nothing of the kind")
    pool.kubectl("wait", "--for=jsonpath={.status.reason}=CheckFailed", "adapter/guest", "--timeout=60s")
    assert complete(pool.address, "guest", PROMPT, max_tokens=1).status == 400
    attach(complete_text(pool, demo.FIRST[0]).strip()[:40])
    pool.kubectl("wait", "--for=condition=Ready", "adapter/guest", "--timeout=60s")
    oracle.check(demo.FIRST[0], PROMPT, TOKENS, complete_text(pool, "guest"))
    pool.kubectl("delete", "adapter", "guest", "--timeout=10s")
    wait_until(lambda: complete(pool.address, "guest", PROMPT, max_tokens=1).status == 404, "the adapter to be gone")
    assert pool.pods() == before


@pytest.mark.parametrize("name", FOUR)
def test_greedy_answers_equal_those_of_peft(four: Pool, oracle: Oracle, name: str) -> None:
    oracle.check(name, PROMPT, TOKENS, complete_text(four, name))


def test_answers_of_one_mixed_batch_equal_those_of_peft(four: Pool, oracle: Oracle) -> None:
    prompts = (PROMPT, "Question: What is a friend?\nAnswer:", "Question: Why is the sky blue at noon?\nAnswer:")
    rows = [(name, prompts[at % len(prompts)]) for at, name in enumerate(FOUR)]
    with ThreadPoolExecutor(len(rows)) as executor:
        answers = [executor.submit(complete_text, four, *row) for row in rows]
        most = 0
        while not all(answer.done() for answer in answers):
            most = max(most, running_sequences(four))
    assert most > len(rows) // 2, f"at most {most} requests ran together"
    for (name, prompt), answer in zip(rows, answers, strict=True):
        oracle.check(name, prompt, TOKENS, answer.result())


def running_sequences(pool: Pool) -> int:
    (pod,) = pool.kubectl("get", "pods", "-o", "jsonpath={.items[*].status.podIP}").split()
    with urllib.request.urlopen(f"http://{pod}:8002/metrics", timeout=30.0) as answer:
        lines = answer.read().decode().splitlines()
    return int(next(float(line.split()[1]) for line in lines if line.startswith("graft_running_sequences ")))


def test_the_openai_client_chats(client: openai.OpenAI, oracle: Oracle) -> None:
    assert {model.id for model in client.models.list()} == set(FOUR)
    for name in FOUR[1:]:
        chat = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=TOKENS
        )
        assert chat.choices[0].message.content is not None
        oracle.check(name, PROMPT, TOKENS, chat.choices[0].message.content)


def test_the_openai_client_streams(client: openai.OpenAI, oracle: Oracle) -> None:
    chunks = list(
        client.chat.completions.create(
            model=demo.FOURTH,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert sum(map(bool, pieces)) > 1, "the answer came in one piece"
    oracle.check(demo.FOURTH, PROMPT, TOKENS, "".join(pieces))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 1


def test_the_base_has_no_chat_template_and_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model=BASE_NAME, messages=[{"role": "user", "content": QUESTION}])


def test_an_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.completions.create(model="nobody", prompt=PROMPT)


def test_the_operator_comes_back_from_a_kill(four: Pool, oracle: Oracle) -> None:
    before = four.pods()
    restarts = operator_restarts(four)
    four.kill("graft-operator", "run")
    four.eventually(lambda: operator_restarts(four) > restarts, "the operator is started again")
    four.cluster.kubectl("-n", demo.OPERATOR_NAMESPACE, "rollout", "status", OPERATOR, "--timeout=120s")
    # It works again: a change is carried out.
    four.apply("changes/pirate-removed.yaml")
    assert complete(four.address, demo.REMOVED, PROMPT).status == 404
    four.apply("changes/fourth-adapter.yaml")
    answers_as_before(four, oracle)
    assert four.pods() == before


def operator_restarts(pool: Pool) -> int:
    items = pool.cluster.get("pods", "-n", demo.OPERATOR_NAMESPACE)["items"]
    return sum(status["restartCount"] for pod in items for status in pod["status"].get("containerStatuses", ()))


def killed_and_back(pool: Pool, *words: str) -> None:
    """Kill -9 a process of the pool's only runtime, and wait until its pod is ready again."""
    (uid, restarts) = next(iter(pool.pods().items()))
    pool.kill(*(words or ("graft-runtime", uid)))
    pool.eventually(lambda: pool.pods() == {uid: restarts + 1}, "the killed container is started again")
    pool.kubectl("wait", "--for=condition=Ready", "pod", "-l", f"graft.dev/deployment={demo.POOL}", "--timeout=200s")
    wait_until_routed(pool.address)


@pytest.mark.parametrize("words", [(), ("graft_runtime.engine",)], ids=["api-process", "engine-process"])
def test_a_runtime_comes_back_from_a_kill(four: Pool, oracle: Oracle, words: tuple[str, ...]) -> None:
    killed_and_back(four, *words)
    four.wait_until_ready()
    answers_as_before(four, oracle)


def test_a_killed_runtime_comes_back_with_the_operator_down(four: Pool, oracle: Oracle) -> None:
    scale = ("-n", demo.OPERATOR_NAMESPACE, "scale", OPERATOR)
    four.cluster.kubectl(*scale, "--replicas=0")
    four.eventually(
        lambda: not four.cluster.get("pods", "-n", demo.OPERATOR_NAMESPACE)["items"], "the operator is gone"
    )
    killed_and_back(four)
    answers_as_before(four, oracle)
    four.cluster.kubectl(*scale, "--replicas=1")
    four.cluster.kubectl("-n", demo.OPERATOR_NAMESPACE, "rollout", "status", OPERATOR, "--timeout=120s")
    four.wait_until_ready()


def test_uninstalling_wedges_nothing(four: Pool, oracle: Oracle) -> None:
    helm.uninstall(four.cluster.kubeconfig, demo.RELEASE, namespace=demo.OPERATOR_NAMESPACE)
    answers_as_before(four, oracle, (BASE_NAME, demo.FIRST[0]))  # pools go on serving
    four.kubectl("delete", f"ad/{demo.POOL}", "--timeout=30s")
    four.eventually(lambda: not four.pods(), "the pool's pods are gone with it")
    four.cluster.kubectl("delete", "namespace", demo.NAMESPACE, demo.OPERATOR_NAMESPACE, "--timeout=100s")
