"""What the chart brings for those who watch over it: monitors, alerts with runbooks, a dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_local import helm
from graft_operator import objects
from graft_operator.metrics import REGISTRY as OPERATOR_METRICS
from graft_operator.settings import Settings
from graft_runtime.pod.metrics import Metrics

from tests.support.pools import make_pool

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/graft"
ON: dict[str, Any] = {
    "monitoring": {
        name: {"enabled": True, "labels": {"release": "prometheus"}}
        for name in ("serviceMonitor", "podMonitor", "rules", "dashboard")
    }
}
LABELS = {
    series: collector._labelnames
    for registry in (OPERATOR_METRICS, Metrics("base").registry)
    for series, collector in registry._names_to_collectors.items()
}
"""Series → the labels that the programs write; those of the scrape come beside them."""


def rendered(**values: Any) -> dict[str, dict[str, Any]]:
    """By kind; the last of each."""
    files = helm.template(CHART, name="graft", namespace="graft-system", values=values)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return {found["kind"]: found for text in texts for found in yaml.safe_load_all(text) if found}


DOCUMENTS = rendered(**ON)
ALERTS = [rule for group in DOCUMENTS["PrometheusRule"]["spec"]["groups"] for rule in group["rules"]]
DASHBOARD = json.loads(DOCUMENTS["ConfigMap"]["data"]["graft.json"])


def queries() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*panels, *(alert["expr"] for alert in ALERTS)]


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_series_and_labels_that_there_are(query: str) -> None:
    asked = re.findall(r"\b(graft_(?!dev_)\w+)(?:\{([^}]*)\})?", query)
    assert asked
    for name, matchers in asked:
        assert name in LABELS
        own = set(re.findall(r"(\w+)(?:=~|!=|=)", matchers)) - {"namespace", "pod"}
        assert own <= set(LABELS[name])
    assert query.count("(") == query.count(")")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_has_a_runbook(alert: dict[str, Any]) -> None:
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert alert["alert"] in headings
    assert anchor == alert["alert"].lower()
    assert alert["labels"]["severity"] in {"warning", "critical"}
    assert alert["annotations"]["summary"]


def test_the_page_has_a_runbook_for_nothing_else() -> None:
    headings = re.findall(r"^### (Graft\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert headings == [alert["alert"] for alert in ALERTS]


def test_where_the_runbooks_are_is_a_value() -> None:
    values = {"monitoring": {"rules": {"enabled": True, "runbooks": "https://wiki/graft"}}}
    text = json.dumps(rendered(**values)["PrometheusRule"])
    assert text.count("https://wiki/graft#") == len(ALERTS)


def test_monitors_find_what_they_are_to_watch() -> None:
    operator, pools = DOCUMENTS["ServiceMonitor"]["spec"], DOCUMENTS["PodMonitor"]["spec"]
    service = DOCUMENTS["Service"]
    assert operator["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {port["name"] for port in service["spec"]["ports"]} >= {each["port"] for each in operator["endpoints"]}
    template = DOCUMENTS["Deployment"]["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    pod = objects.build_deployment(make_pool(), "hash", Settings("graft-system", "i"))["spec"]["template"]
    (wanted,) = pools["selector"]["matchExpressions"]
    assert wanted["operator"] == "Exists"
    assert wanted["key"] in pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    probed = container["readinessProbe"]["httpGet"]["port"]
    assert {each["port"] for each in pools["podMetricsEndpoints"]} == {probed}, "the runtime serves both on one port"
    assert pools["namespaceSelector"] == {"any": True}
    some = rendered(**ON, watchNamespaces=["team-a"])["PodMonitor"]["spec"]
    assert some["namespaceSelector"] == {"matchNames": ["team-a"]}


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"])
def test_each_is_there_where_it_is_asked_for_alone_and_bears_its_labels(kind: str) -> None:
    assert kind not in rendered()
    assert DOCUMENTS[kind]["metadata"]["labels"]["release"] == "prometheus"


def test_the_dashboard_s_panels_lie_beside_each_other() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
