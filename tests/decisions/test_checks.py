"""Which URIs a pool may use: the administrator's schemes first, then the declared sources."""

from __future__ import annotations

import pytest
from graft_operator.decisions.checks import adapter_fault, base_fault
from graft_operator.decisions.wanted_adapters import inline_adapters
from graft_operator.objects import Pool
from graft_operator.resource import parse_spec
from graft_operator.settings import Settings
from graft_runtime.errors import ErrorCode

BOTH = ("pvc", "file")


@pytest.mark.parametrize(
    ("uri", "schemes", "expected"),
    [
        pytest.param("pvc://shelf/a", ("pvc",), None, id="declared"),
        pytest.param("file:///mnt/disk/a", BOTH, None, id="below-a-mount"),
        pytest.param("file:///mnt/disk/a", ("pvc",), "the administrator allows pvc", id="scheme-not-allowed"),
        pytest.param("pvc://other/a", ("pvc",), "lies in no source", id="claim-not-declared"),
        pytest.param("file:///mnt/disk2/a", BOTH, "lies in no source", id="beside-a-mount"),
    ],
)
def test_where_an_adapter_may_come_from(uri: str, schemes: tuple[str, ...], expected: str | None) -> None:
    spec = parse_spec(
        {
            "baseModel": {"uri": "pvc://shelf/base"},
            "sources": [{"name": "shelf", "claimName": "c"}, {"name": "disk", "mountPath": "/mnt/disk"}],
            "adapters": [{"name": "a", "uri": uri}],
        }
    )
    fault = adapter_fault(
        spec,
        inline_adapters(Pool("team", "support", "uid", 1, spec))[0],
        Settings("ns", "image", allowed_schemes=schemes),
    )
    if expected is None:
        assert fault is None
        return
    assert fault is not None
    assert fault.code is ErrorCode.SOURCE_NOT_DECLARED
    assert expected in fault.message
    assert "hint: " in fault.message
    assert "adapter `a`" in fault.what


def test_the_base_model_obeys_the_same_rules() -> None:
    spec = parse_spec(
        {"baseModel": {"uri": "file:///mnt/disk/base"}, "sources": [{"name": "disk", "mountPath": "/mnt/disk"}]}
    )
    assert base_fault(spec, Settings("ns", "image", allowed_schemes=BOTH)) is None
    fault = base_fault(spec, Settings("ns", "image", allowed_schemes=("pvc",)))
    assert fault is not None
    assert "spec.baseModel.uri" in fault.what
