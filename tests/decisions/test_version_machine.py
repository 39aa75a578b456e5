"""Random lives of one name: new bytes, bad bytes, corrected bytes, pods born and ended, pushes lost, operators killed
between any two effects. The plans are the operator's own and the pods' adapters are the runtime's own.

A pod that has answered under the name goes on answering, always with bytes that are good; a pod that is born later is
ready only once it answers as well; when nothing happens any more, all pods answer alike and the status says with what.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from graft_operator.decisions.observed import PodReport, PodView, ResolvedSource
from graft_operator.decisions.plan import Plan
from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.status import RuntimeStatus
from graft_runtime.errors import GraftError

from tests.support.played_engine import Played
from tests.support.pools import NOW, adapter, carried_out, fresh, plan_of, runtime_status, sha, spec_of, with_pods

NAME = "billing"
REPLICAS = 2
MOST_PODS = 3


@dataclass
class Pod:
    """One pod: the runtime's own adapters, and the set that it has in force."""

    number: int
    played: Played
    adapter_set: AdapterSet
    ready: bool = False
    answered: bool = False

    def take(self, adapter_set: AdapterSet) -> None:
        if adapter_set.generation > self.adapter_set.generation:
            self.adapter_set = adapter_set
            self.played.residency.apply(adapter_set)

    def status(self) -> RuntimeStatus:
        report = self.played.residency.report(NAME)
        head = runtime_status(self.adapter_set)
        return head.model_copy(update={"adapters": () if report is None else (report,), "ready": self.ready})

    async def look(self) -> str | None:
        """Return the digest that answers, if one does without waiting; take note of readiness as a pod does."""
        settled = all(self.played.residency.is_settled(entry) for entry in self.adapter_set.adapters)
        self.ready = self.ready or settled
        try:
            lease = await self.played.acquire(NAME, 0.001)
        except Exception:
            return None
        lease.release()
        self.answered = True
        return lease.digest


class World:
    """A pool, its pods and its sources."""

    def __init__(self, play: Callable[..., Played], seed: int) -> None:
        self.play, self.chance = play, random.Random(seed)
        self.content: dict[str, str] = {}
        """By URI."""
        self.bad: set[str] = set()
        self.unmountable: set[str] = set()
        """Of the bad ones; the others don't pass their check."""
        self.answers: dict[str, str | GraftError] = {}
        """To the check, by digest."""
        self.pods: list[Pod] = []
        self.born = 0
        self.uri = ""
        self.served = False
        self.new_source(good=self.chance.random() < 0.7)
        observed = fresh(self.spec())
        self.observed = with_pods(carried_out(observed, plan_of(observed)))
        self.observed = replace(self.observed, pods=(), reports={})

    def spec(self) -> dict[str, Any]:
        return spec_of({"name": NAME, "uri": self.uri, "check": {"prompt": "How many?", "equals": "42"}})

    def new_source(self, *, good: bool) -> None:
        self.uri = f"pvc://shelf/{len(self.content)}"
        self.put(good=good)

    def put(self, *, good: bool) -> None:
        digest = sha(f"{self.uri} {self.chance.random()}")
        self.content[self.uri] = digest
        self.answers[digest] = "42" if good else "41"
        if not good:
            self.bad.add(digest)
            if self.chance.random() < 0.5:
                self.unmountable.add(digest)

    @property
    def stored(self) -> AdapterSet:
        (found,) = self.observed.stored_sets.values()
        return found

    # what may happen

    async def edit(self) -> None:
        self.new_source(good=self.chance.random() < 0.5)
        pool = self.observed.pool
        self.observed = replace(self.observed, pool=replace(pool, spec=self.spec(), generation=pool.generation + 1))

    async def correct(self) -> None:
        """Put other files where bad ones are."""
        if self.content[self.uri] in self.bad:
            self.put(good=self.chance.random() < 0.6)

    async def give_birth(self) -> None:
        if len(self.pods) < MOST_PODS:
            self.born += 1
            played = self.play(limit=4)
            played.bad, played.answers = self.unmountable, self.answers
            blank = self.stored.model_copy(update={"generation": 0, "adapters": ()})
            self.pods.append(Pod(self.born, played, blank))
            self.pods[-1].take(self.stored)

    async def end(self) -> None:
        """End a pod, as a roll does: never the last that is ready."""
        victim = self.chance.choice(self.pods) if self.pods else None
        if victim is not None and (not victim.ready or sum(pod.ready for pod in self.pods) > 1):
            self.pods.remove(victim)

    async def work(self) -> None:
        if self.pods:
            await self.chance.choice(self.pods).played.work()

    async def operate(self) -> None:
        """Run one pass; the operator may be killed after any of its effects, and any push may be lost."""
        plan = self.plan()
        last = self.chance.choice(("mounts", "pushes", "all", "all", "all"))
        self.observed = carried_out(self.observed, replace(plan, statuses={}))
        if last == "mounts":
            return
        self.push(plan, lost=0.2)
        if last == "all":
            self.observed = carried_out(self.observed, plan)
            self.answer(plan)

    async def restart(self) -> None:
        """Replace the operator: it knows what is written down and nothing else."""
        self.observed = replace(self.observed, resolutions={}, applied={})

    # the parts

    def plan(self) -> Plan:
        template = self.observed.rollout
        assert template is not None
        views = {
            f"pod-{pod.number}": PodView(
                f"support-{pod.number}",
                f"pod-{pod.number}",
                "10.0.0.1",
                template.config_hash,
                pod.ready,
                template.pod_template_hash,
            )
            for pod in self.pods
        }
        reports = {f"pod-{pod.number}": PodReport(status=pod.status(), asked=True) for pod in self.pods}
        self.observed = replace(self.observed, pods=tuple(views.values()), reports=reports)
        return plan_of(self.observed)

    def push(self, plan: Plan, lost: float) -> None:
        pods = {f"pod-{pod.number}": pod for pod in self.pods}
        for push in plan.pushes:
            if self.chance.random() >= lost:
                pods[push.pod.uid].take(push.adapter_set)

    def answer(self, plan: Plan) -> None:
        known = {source: answer for source, answer in self.observed.resolutions.items() if source in plan.remembered}
        asked = {resolve.source: self.held(resolve.source) for resolve in plan.resolves}
        self.observed = replace(self.observed, resolutions={**known, **asked})

    def held(self, source: Source) -> ResolvedSource:
        return ResolvedSource(digest=self.content[source.uri], retry_at=NOW)

    async def check(self) -> None:
        for pod in self.pods:
            had_answered, was_ready = pod.answered, pod.ready
            digest = await pod.look()
            assert digest not in self.bad
            if had_answered:
                assert digest is not None, f"pod {pod.number} has answered and does no longer"
            if self.served and pod.ready and not was_ready:
                assert digest is not None, f"pod {pod.number} is ready without what the others serve"
            self.served = self.served or digest is not None

    async def settle(self) -> None:
        """Let everything that is under way come to its end."""
        while len(self.pods) < REPLICAS:
            await self.give_birth()
        for _ in range(12):
            plan = self.plan()
            self.observed = carried_out(self.observed, plan)
            self.push(plan, lost=0.0)
            self.answer(plan)
            for pod in self.pods:
                await pod.played.work()
            await self.check()


@pytest.mark.parametrize("seed", range(40))
async def test_a_name_that_served_once_always_answers(play: Any, seed: int) -> None:
    world = World(play, seed)
    happen = [world.edit, world.correct, world.give_birth, world.end, world.restart]
    often = [world.work, world.operate] * 4
    for _ in range(60):
        await world.chance.choice([*happen, *often])()
        await world.check()
    await world.settle()
    answers = {await pod.look() for pod in world.pods}
    assert len(answers) == 1, "all pods answer alike"
    (answer,) = answers
    wanted = world.content[world.uri]
    shown = adapter(world.plan(), NAME)
    if wanted in world.bad:
        assert (answer is not None) == world.served
        why = "ShapeMismatch" if wanted in world.unmountable else "CheckFailed"
        assert (shown.digest, shown.wanted_digest, shown.reason) == (answer, wanted, why)
    else:
        assert (answer, shown.digest, shown.wanted_digest, shown.reason) == (wanted, wanted, None, None)
