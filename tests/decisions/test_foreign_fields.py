"""What others have added to an object of ours is found by who owns which field, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
from graft_operator.decisions.foreign_fields import foreign_pointers

CONTAINER = 'k:{"name":"runtime"}'
OURS = {
    "f:replicas": {},
    "f:template": {
        "f:metadata": {"f:labels": {"f:app": {}}},
        "f:spec": {
            "f:containers": {
                CONTAINER: {
                    ".": {},
                    "f:name": {},
                    "f:env": {'k:{"name":"HOME"}': {".": {}, "f:name": {}, "f:value": {}}},
                    "f:securityContext": {"f:allowPrivilegeEscalation": {}},
                }
            }
        },
    },
}


def deployment(theirs: dict[str, Any], *, ours: dict[str, Any] | None = OURS, **entry: Any) -> dict[str, Any]:
    """Make a Deployment with a sidecar and more that somebody else has added, who owns `theirs` below `spec`."""
    fields = [
        {"manager": "graft", "operation": "Apply", "fieldsV1": {"f:metadata": {}, "f:spec": ours}},
        {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:spec": theirs}, **entry},
    ]
    env = [{"name": "LD_PRELOAD", "value": "x"}, {"name": "HOME", "value": "/tmp"}, {"name": "A/B~C", "value": "y"}]
    security = {"allowPrivilegeEscalation": False, "privileged": True, "capabilities": {"add": ["ALL"]}}
    containers = [
        {"name": "sidecar", "image": "x"},
        {"name": "runtime", "env": env, "securityContext": security},
        {"name": "other", "image": "x"},
    ]
    return {
        "metadata": {"managedFields": fields},
        "spec": {
            "paused": True,
            "replicas": 2,
            "template": {
                "metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}, "labels": {"app": "x"}},
                "spec": {"containers": containers, "hostNetwork": True, "dnsPolicy": "ClusterFirst"},
            },
        },
    }


def in_pod(**fields: Any) -> dict[str, Any]:
    return {"f:template": {"f:spec": fields}}


def in_container(**fields: Any) -> dict[str, Any]:
    return in_pod(**{"f:containers": {CONTAINER: fields}})


AT = "/spec/template/spec"


@pytest.mark.parametrize(
    ("theirs", "found"),
    [
        ({"f:paused": {}}, ("/spec/paused",)),
        (in_pod(**{"f:hostNetwork": {}}), (f"{AT}/hostNetwork",)),
        (
            in_container(**{"f:securityContext": {"f:privileged": {}}}),
            (f"{AT}/containers/1/securityContext/privileged",),
        ),
        (
            in_container(**{"f:securityContext": {"f:capabilities": {".": {}, "f:add": {}}}}),
            (f"{AT}/containers/1/securityContext/capabilities",),
        ),
        (
            in_pod(
                **{
                    "f:containers": {
                        f'k:{{"name":"{name}"}}': {".": {}, "f:image": {}} for name in ("sidecar", "other")
                    }
                }
            ),
            (f"{AT}/containers/2", f"{AT}/containers/0"),
        ),
        (
            in_container(**{"f:env": {f'k:{{"name":"{name}"}}': {".": {}} for name in ("LD_PRELOAD", "A/B~C")}}),
            (f"{AT}/containers/1/env/2", f"{AT}/containers/1/env/0"),
        ),
        ({"f:replicas": {}}, ()),
        ({"f:template": {"f:metadata": {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/restartedAt": {}}}}}, ()),
        (in_pod(**{"f:initContainers": {}}), ()),
    ],
    ids=["paused", "pod", "privileged", "capabilities", "containers", "env", "shared", "restarted", "not there"],
)
def test_what_somebody_else_owns_alone(theirs: dict[str, Any], found: tuple[str, ...]) -> None:
    assert foreign_pointers(deployment(theirs)) == found


def test_what_a_controller_says_in_the_status_or_by_scaling_is_no_addition() -> None:
    assert foreign_pointers(deployment({"f:paused": {}}, subresource="scale")) == ()


def test_nothing_is_foreign_where_it_is_not_known_what_is_ours() -> None:
    assert foreign_pointers(deployment({"f:paused": {}}, ours=None)) == ()
    assert foreign_pointers({"metadata": {}, "spec": {"paused": True}}) == ()
