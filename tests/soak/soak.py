"""A pod with good clients on three adapters, attacked in turn in every way: what the good clients notice."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.soak.report import Attacked, Soak, figures, most_memory
from tests.soak.stage import GOOD, VICTIM, Stage
from tests.soak.watch import RETURN_SECONDS, Watch, memory, settled
from tests.support.load import Asked, Load, Outcome, Result
from tests.support.pod_process import PodProcess
from tests.support.waiting import wait_until

TOKENS = 24
PROMPTS = ("the weather is", "a table of numbers: 1, 2, 3,")
PAUSE_SECONDS = 0.05
SETTLED_SECONDS = 1.0
"""After an attack, at most: requests that begin sooner are none of a quiet time."""
QUIET_SHARE = 0.25
"""Of the time."""


@dataclass(frozen=True)
class Attack:
    """Files that a pod is given, and clients who ask it meanwhile."""

    name: str
    client: str | None = None
    """Of `tests.soak.clients`."""
    files: str | None = None
    """The method of `Stage` that makes the adapters."""
    names: bool = False
    """The clients ask for these adapters."""


ATTACKS = (
    Attack("integers", "integers"),
    Attack("many values", "many_values"),
    Attack("unfinished", "unfinished"),
    Attack("never reading", "never_reading"),
    Attack("long prompts", "long_prompts"),
    Attack("sixty clients of one name", "one_name"),
    Attack("framings", "framings"),
    Attack("control tokens", "control_tokens"),
    Attack("tokenizers", "asking", "tokenizers", names=True),
    Attack("chat templates", "asking", "templates", names=True),
    Attack("module paths", "asking", "long_paths", names=True),
    Attack("trickling sources", None, "trickling"),
    Attack("costly adapters", "asking", "costly", names=True),
    Attack("near invocations", "near_invocations"),
    Attack("long names", "long_names", "long_names"),
    Attack("a sparse file", "asking", "sparse", names=True),
    Attack("archives", None, "packed"),
)


def good_requests(stage: Stage) -> dict[str, list[Asked]]:
    """Return what each good client asks, with what the quiet pod answers."""
    kinds: dict[str, list[Asked]] = {}
    for name in GOOD:
        for streamed in (False, True):
            asked = [
                Asked(name, prompt, TOKENS, streamed, "", stage.digests[name], chat=name == GOOD[-1])
                for prompt in PROMPTS
            ]
            kinds[f"kept {name} {streamed}"] = [_answered(stage.pod, one) for one in asked]
    texts = {one.text for asked in kinds.values() for one in asked}
    assert len(texts) == len(GOOD) * len(PROMPTS), "the answers must tell the names apart"
    return kinds


def _answered(pod: PodProcess, asked: Asked) -> Asked:
    body = json.loads(asked.body) | {"stream": False}
    reply = pod.post(asked.path, body)
    assert reply.status == 200, reply.content
    choice = reply.json["choices"][0]
    return replace(asked, text=choice["message"]["content"] if asked.chat else choice["text"])


def run(
    directory: Path, seconds: float, rounds: int, say: Callable[[str], None], return_seconds: float = RETURN_SECONDS
) -> Soak:
    """Start a pod, attack it, and return what was found.

    Args:
        directory: for the pod's files.
        seconds: of attacks and quiet times together.
        rounds: of all attacks, in that time.
        say: is told what is done.
        return_seconds: for memory to come back.
    """
    stage = Stage(directory)
    try:
        stage.pod.wait_ready()
        wait_until(lambda: all(stage.pod.report(name).ready for name in (*GOOD, VICTIM)), "the good adapters serve")
        return _soaked(stage, seconds, rounds, say, return_seconds)
    finally:
        stage.close()


def _soaked(stage: Stage, seconds: float, rounds: int, say: Callable[[str], None], return_seconds: float) -> Soak:
    pod = stage.pod
    load = Load(f"{pod.address}:8000", good_requests(stage), PAUSE_SECONDS)
    watch = Watch(pod)
    begun = time.monotonic()
    try:
        each = seconds / (rounds * len(ATTACKS) + 1)
        settling = min(SETTLED_SECONDS, each / 10)
        quiet = [(time.monotonic(), _slept(each))]
        pids = pod.process.pid if pod.process else 0, pod.engine_pid
        before = memory(pod)
        spans: dict[int, list[tuple[float, float]]] = {number: [] for number in range(len(ATTACKS))}
        costs: dict[int, list[tuple[int, float, float, Counter[str]]]] = {number: [] for number in spans}
        for _ in range(rounds):
            for number, attack in enumerate(ATTACKS):
                say(f"{time.monotonic() - begun:5.0f} s: {attack.name}")
                watch.begin()
                began = time.monotonic()
                told = _attacked(stage, attack, each * (1 - QUIET_SHARE) - settling)
                spans[number].append((began, time.monotonic()))
                costs[number].append((watch.peak, watch.probe, watch.control, told))
                _slept(settling)
                quiet.append((time.monotonic(), _slept(each * QUIET_SHARE)))
        results = load.results(begun)
    finally:
        load.stop()
        watch.stop()
    after = settled(pod, most_memory(sum(before.values())), return_seconds)
    restarts = sum(one != other for one, other in zip(pids, _pids(pod), strict=True))
    attacked = [
        Attacked(
            attack.name,
            figures([took(one) for span in spans[number] for one in results if _touches(one, span)]),
            max(peak for peak, *_ in costs[number]),
            max(probe for _, probe, *_ in costs[number]),
            max(control for _, _, control, _ in costs[number]),
            dict(sum((told for *_, told in costs[number]), Counter[str]())),
        )
        for number, attack in enumerate(ATTACKS)
    ]
    every = [span for found in spans.values() for span in found]
    log = pod.log.splitlines()
    return Soak(
        figures([took(one) for one in results if any(_inside(one, span) for span in quiet)]),
        figures([took(one) for one in results if any(_touches(one, span) for span in every)]),
        attacked,
        before,
        after,
        [f"{one.asked.name}: {one.why}" for one in results if one.outcome is Outcome.WRONG],
        restarts,
        [line[:500] for line in log if "Traceback" in line or '"code": "Internal"' in line],
    )


def _pids(pod: PodProcess) -> tuple[int, int]:
    if pod.process is None or pod.process.poll() is not None:
        return 0, 0
    return pod.process.pid, pod.engine_pid


def _slept(seconds: float) -> float:
    time.sleep(seconds)
    return time.monotonic()


def _attacked(stage: Stage, attack: Attack, seconds: float) -> Counter[str]:
    """Attack for so long. Return what the attackers were told."""
    told: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    with stage.served(attack.files):
        if attack.client is not None:
            asked = ",".join(stage.names(attack.files)) if attack.names and attack.files else VICTIM
            command = [
                sys.executable,
                "-m",
                "tests.soak.clients",
                attack.client,
                stage.pod.address,
                asked,
                str(seconds),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 60)
            told.update(json.loads(done.stdout))
        time.sleep(max(0.0, ends - time.monotonic()))
        if attack.files is not None:
            told.update(stage.states(attack.files))
    return told


def took(result: Result) -> float:
    """Return the seconds of a request; infinity for one that brought no answer."""
    return result.ended - result.began if result.outcome is Outcome.RIGHT else math.inf


def _touches(result: Result, span: tuple[float, float]) -> bool:
    return result.began < span[1] and result.ended > span[0]


def _inside(result: Result, span: tuple[float, float]) -> bool:
    return result.began >= span[0] and result.ended <= span[1]
