"""What spec.podTemplate may hold: a list of fields, and what the administrator adds to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graft_operator.decisions.checks import pod_template_fault
from graft_operator.decisions.plan import make_plan
from graft_operator.objects.pod import build_pod_spec
from graft_operator.resource import parse_spec
from graft_operator.resource.pod_template_fields import ENVIRONMENT, FIELDS, RESERVED_VOLUMES, faults_beyond
from graft_runtime.errors import ErrorCode

from tests.support.pod_templates import BEYOND, PLAIN, runtime
from tests.support.pools import BILLING, NOW, SETTINGS, fresh, make_pool, plan_of, spec_of, told


def fault(spec: dict[str, Any], *allowed: str) -> str | None:
    parsed = parse_spec(spec_of(podTemplate={"spec": spec}))
    found = pod_template_fault(parsed, replace(SETTINGS, allowed_pod_template_fields=allowed))
    return None if found is None else found.message


@pytest.mark.parametrize("name", PLAIN)
def test_what_gives_a_pod_no_more_than_it_has_is_taken(name: str) -> None:
    assert fault(PLAIN[name]) is None


@pytest.mark.parametrize("name", BEYOND)
def test_what_gives_a_pod_more_is_refused_by_its_field_until_the_administrator_allows_it(name: str) -> None:
    overlay, field = BEYOND[name]
    message = fault(overlay)
    assert message is not None
    assert message.startswith(f"spec.podTemplate.spec.{field} ")
    assert f"\n\nhint: leave it out, or have the administrator add {field} to" in message
    assert fault(overlay, field) is None
    assert fault(overlay, field.partition(".")[0]) is None, "a field stands for all below it"
    assert fault(overlay, f"{field}s") is not None


def test_each_field_is_told_once_and_the_value_where_it_is_one() -> None:
    variables = [{"name": name, "value": "x"} for name in ("LD_PRELOAD", "LD_AUDIT", "TZ")]
    found = dict(faults_beyond({**runtime(env=variables), "hostPID": True}, ()))
    assert list(found) == ["containers.env.name", "hostPID"]
    assert found["containers.env.name"].startswith("is 'LD_AUDIT', expected `OMP_NUM_THREADS`")


def test_no_pod_is_made_and_what_to_do_is_told() -> None:
    plan = plan_of(fresh(spec_of(BILLING, podTemplate={"spec": {"hostNetwork": True}})))
    assert told(plan)["Stalled"] == ("True", ErrorCode.FIELD_NOT_ALLOWED)
    assert "Deployment" not in {apply.body["kind"] for apply in plan.workload}
    settings = replace(SETTINGS, allowed_pod_template_fields=("hostNetwork",))
    allowed = make_plan(fresh(spec_of(BILLING, podTemplate={"spec": {"hostNetwork": True}})), settings, NOW)
    (deployment,) = [apply.body for apply in allowed.workload if apply.body["kind"] == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["hostNetwork"] is True


def test_our_own_volumes_are_reserved_but_for_the_cache_and_the_sources() -> None:
    ours = {
        volume["name"] for volume in build_pod_spec(make_pool(cache={"claimName": "c"}), SETTINGS, "hash")["volumes"]
    }
    assert ours - {"cache", "source-models"} == set(RESERVED_VOLUMES)


def test_the_page_lists_what_everybody_may_set() -> None:
    page = (Path(__file__).parents[2] / "docs/security.md").read_text()
    section = page.partition("## What an AdapterDeployment may ask of its pods")[2].partition("Anything else")[0]
    missing = [name for name in (*FIELDS, *ENVIRONMENT) if f"`{name}" not in section and name not in STRUCTURE]
    assert missing == []


STRUCTURE = {"containers", "volumes", "securityContext", "resources"}
