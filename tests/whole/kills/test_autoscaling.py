"""Kubernetes' own autoscaler adds and takes away pods by what they tell of their load; who asks doesn't notice."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.metrics_api import metrics_api
from tests.whole.kills.judging import RIGHT, told
from tests.whole.kills.pool import POOL

if TYPE_CHECKING:
    from tests.support.load import Load
    from tests.whole.kills.pool import Pool

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(700)]

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
METRIC = "graft_running_sequences"
"""Not the page's: with the clients of these tests none waits."""
SECONDS = 240.0


def test_the_autoscaler_adds_a_pod_and_takes_it_away(pool: Pool, load: Load) -> None:
    began = time.monotonic()
    with metrics_api(pool.cluster, METRIC):
        try:
            pool.kubectl("apply", "-f", "-", input=yaml.safe_dump(autoscaler("1m")))
            pool.eventually(lambda: pool.ready_replicas() == (3, {3}), "a third pod serves", began + SECONDS)
            calm = time.monotonic()
            pool.kubectl("apply", "-f", "-", input=yaml.safe_dump(autoscaler("1000")))
            pool.eventually(
                lambda: len(pool.pods()) == 2 and pool.ready_replicas() == (2, {2}), "it is gone", calm + SECONDS
            )
        finally:
            pool.kubectl("delete", f"hpa/{POOL}", "--ignore-not-found")
            pool.kubectl("scale", f"ad/{POOL}", "--replicas=2")
    assert told(load, began).keys() == {RIGHT}


def autoscaler(target: str) -> Any:
    """The one of the page, for 2 or 3 pods of this pool, without its wait before a pod goes."""
    (found,) = re.findall(r"```yaml\n(apiVersion: autoscaling.*?)```", PAGE.read_text(), re.DOTALL)
    manifest = yaml.safe_load(found)
    manifest["metadata"]["name"] = manifest["spec"]["scaleTargetRef"]["name"] = POOL
    manifest["spec"] |= {"minReplicas": 2, "maxReplicas": 3}
    manifest["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 0
    (metric,) = manifest["spec"]["metrics"]
    metric["pods"] = {"metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": target}}
    return manifest
