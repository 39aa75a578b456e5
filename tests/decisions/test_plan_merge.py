"""What the operator decides about a merged pool: an observation in, a plan out. Milliseconds, no cluster."""

from __future__ import annotations

from typing import Any

import pytest
from graft_operator import objects
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import Merge, MergePart

from tests.support.pools import (
    BILLING,
    SQL,
    adapter,
    carried_out,
    changed,
    current_set,
    plan_of,
    pool_of,
    running,
    sha,
    spec_of,
    status_of,
    told,
    view_of,
)

MERGE = {"name": "both", "adapters": [{"name": "billing", "weight": 0.5}]}


def config_hash(*adapters: dict[str, Any], **more: Any) -> str:
    return objects.build_runtime_config(pool_of(view_of(spec_of(*adapters, **more)))).config_hash()


def test_pods_are_born_with_all_that_the_spec_says_of_a_merge() -> None:
    spec = spec_of({**BILLING, "scale": 3.0}, SQL, merge=MERGE)
    merge = objects.build_runtime_config(pool_of(view_of(spec))).merge
    assert merge == Merge(
        name="both", adapters=(MergePart(name="billing", source=Source(uri=BILLING["uri"]), weight=1.5),)
    )


@pytest.mark.parametrize(
    ("billing", "sql", "merge", "rolls"),
    [
        pytest.param({}, {}, None, True, id="to-hot-mode"),
        pytest.param({"scale": 2.0}, {}, MERGE, True, id="scale"),
        pytest.param({"uri": "pvc://shelf/billing-2"}, {}, MERGE, True, id="source"),
        pytest.param({"digest": sha("x")}, {}, MERGE, True, id="digest"),
        pytest.param({}, {}, {**MERGE, "name": "other"}, True, id="name"),
        pytest.param({}, {}, {**MERGE, "adapters": [{"name": "billing"}]}, True, id="weight"),
        pytest.param({"pinned": True}, {}, MERGE, False, id="pinned"),
        pytest.param({}, {"uri": "pvc://shelf/sql-2", "scale": 2.0}, MERGE, False, id="an-adapter-outside"),
    ],
)
def test_what_rolls_a_merged_pool(
    billing: dict[str, Any], sql: dict[str, Any], merge: dict[str, Any] | None, rolls: bool
) -> None:
    before = config_hash(BILLING, SQL, merge=MERGE)
    more = {} if merge is None else {"merge": merge}
    assert (config_hash({**BILLING, **billing}, {**SQL, **sql}, **more) != before) is rolls


def test_a_merged_pool_is_told_of_the_merge_alone() -> None:
    observed = changed(running(BILLING, SQL), spec_of(BILLING, SQL, merge=MERGE))
    plan = plan_of(observed)
    assert [entry.name for entry in current_set(plan).adapters] == ["billing"]
    assert current_set(plan).adapters[0].digest == sha(BILLING["uri"]), "what is known is not asked again"
    outside = adapter(plan, "sql")
    assert (outside.reason, outside.desired_replicas, outside.digest) == ("PoolIsMerged", 0, None)
    assert outside.message is not None
    assert "`both`" in outside.message
    assert (status_of(plan).adapter_counts.desired, status_of(plan).adapter_counts.failed) == (1, 0)
    assert told(plan)["Stalled"] == ("False", "NoFault")
    assert told(plan)["Available"] == ("False", "RollingOut"), "the hot pods do not serve `both`"


def test_hot_pods_keep_their_set_while_the_merge_rolls_out() -> None:
    observed = changed(running(BILLING, SQL), spec_of(BILLING, SQL, merge=MERGE))
    plan = plan_of(observed)
    after = carried_out(observed, plan)
    assert sorted(len(found.adapters) for found in after.stored_sets.values()) == [1, 2]
    assert plan.pushes == ()


def test_a_merge_waits_for_the_version_of_the_spec() -> None:
    moved = {**BILLING, "uri": "pvc://shelf/billing-2"}
    assert plan_of(changed(running(BILLING), spec_of(moved))).mounts == (), "a hot one goes on with what it has"
    merged = plan_of(changed(running(BILLING), spec_of(moved, merge=MERGE)))
    entry = current_set(merged).adapters[0]
    assert (entry.source.uri, entry.digest) == (moved["uri"], None)


def test_a_merge_of_what_may_not_be_read_is_not_rolled_out() -> None:
    stray = {**BILLING, "uri": "pvc://elsewhere/billing"}
    observed = changed(running(BILLING, SQL), spec_of(stray, SQL, merge=MERGE))
    plan = plan_of(observed)
    hot = max(carried_out(observed, plan).stored_sets.values(), key=lambda found: len(found.adapters))
    assert [(entry.name, entry.source.uri) for entry in hot.adapters] == [
        ("billing", BILLING["uri"]),
        ("sql", SQL["uri"]),
    ], "hot pods go on with what they serve"
    assert plan.pushes == ()
    assert plan.workload == ()
    assert told(plan)["Stalled"] == ("True", "SourceNotDeclared")
