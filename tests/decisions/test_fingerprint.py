"""What a repair of drift tells: the first path at which two bodies differ."""

from __future__ import annotations

from typing import Any

import pytest
from graft_operator.decisions.fingerprint import fingerprint, first_difference


def deployment(*containers: dict[str, Any], replicas: Any = 1, **metadata: Any) -> dict[str, Any]:
    return {
        "kind": "Deployment",
        "metadata": {"name": "support", **metadata},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": list(containers)}}},
    }


RUNTIME = {"name": "runtime", "image": "b", "env": [{"name": "TOKEN", "value": "secret"}]}
SIDECAR = {"name": "sidecar"}


@pytest.mark.parametrize(
    ("before", "difference"),
    [
        pytest.param(deployment(RUNTIME), None, id="nothing"),
        pytest.param(deployment(RUNTIME, replicas=3), "spec.replicas: 3 instead of 1", id="a-number"),
        pytest.param(
            deployment({**RUNTIME, "image": "a"}),
            "spec.template.spec.containers[0].image: 'a' instead of 'b'",
            id="within-a-list",
        ),
        pytest.param(
            deployment(RUNTIME, SIDECAR),
            "spec.template.spec.containers[1]: {…} instead of nothing",
            id="an-entry-more",
        ),
        pytest.param(deployment(), "spec.template.spec.containers[0]: nothing instead of {…}", id="an-entry-less"),
        pytest.param(
            deployment({**RUNTIME, "env": [{"name": "TOKEN", "value": "other"}]}),
            "spec.template.spec.containers[0].env[0].value differs",
            id="a-variable-may-be-a-secret",
        ),
        pytest.param(
            deployment(RUNTIME, labels={"app.kubernetes.io/name": "x"}),
            "metadata.labels: {…} instead of nothing",
            id="labels",
        ),
        pytest.param(
            deployment({**RUNTIME, "image": "a"}, replicas=3), "spec.replicas: 3 instead of 1", id="the-first-of-two"
        ),
        pytest.param(deployment(RUNTIME, resourceVersion="9", managedFields=[{}]), None, id="what-others-write"),
        pytest.param({**deployment(RUNTIME), "status": {"replicas": 9}}, None, id="the-status"),
        pytest.param(
            deployment(RUNTIME, replicas="9" * 300), f"spec.replicas: '{'9' * 199}… instead of 1", id="a-long-value"
        ),
    ],
)
def test_the_first_difference(before: dict[str, Any], difference: str | None) -> None:
    after = deployment(RUNTIME)
    assert (first_difference(before, after) is None) is (fingerprint(before) == fingerprint(after))
    assert first_difference(before, after) == difference


def test_a_key_that_is_no_plain_word_stands_in_brackets() -> None:
    before, after = ({"metadata": {}, "data": {"ca.crt": content}} for content in ("a", "b"))
    assert first_difference(before, after) == "data[ca.crt]: 'a' instead of 'b'"
