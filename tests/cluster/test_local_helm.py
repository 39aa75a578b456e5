"""Helm in this process: what it makes, refuses and removes."""

from __future__ import annotations

from pathlib import Path

import pytest
from graft_local import helm
from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError

pytestmark = pytest.mark.cluster

TEMPLATE = """
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}}
data: {colour: {{ .Values.colour | quote }}, kubernetes: {{ .Capabilities.KubeVersion.Minor | quote }}}
"""
SCHEMA = '{"type": "object", "properties": {"colour": {"type": "string"}}, "additionalProperties": false}'


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: paint, version: 0.1.0, kubeVersion: '>=1.30.0-0'}")
    (tmp_path / "values.yaml").write_text("colour: green")
    (tmp_path / "values.schema.json").write_text(SCHEMA)
    (tmp_path / "templates" / "paint.yaml").write_text(TEMPLATE)
    return tmp_path


def test_a_release_is_installed_upgraded_and_removed(local_cluster: LocalCluster, namespace: str, chart: Path) -> None:
    def data() -> object:
        return local_cluster.get("configmap", "wall", "-n", namespace)["data"]

    first = helm.install(local_cluster.kubeconfig, "wall", chart, namespace=namespace)
    assert (first["revision"], first["status"]) == (1, "deployed")
    assert data() == {"colour": "green", "kubernetes": "34"}
    second = helm.upgrade(local_cluster.kubeconfig, "wall", chart, namespace=namespace, values={"colour": "red"})
    assert second["revision"] == 2
    assert data() == {"colour": "red", "kubernetes": "34"}
    helm.upgrade(local_cluster.kubeconfig, "wall", chart, namespace=namespace)
    assert data() == {"colour": "green", "kubernetes": "34"}
    for _ in range(2):
        helm.uninstall(local_cluster.kubeconfig, "wall", namespace=namespace)
        with pytest.raises(LocalClusterError, match="not found"):
            data()


def test_values_outside_the_schema_are_refused(local_cluster: LocalCluster, namespace: str, chart: Path) -> None:
    with pytest.raises(LocalClusterError, match=r"(?s)Helm can't install release `wall`.*shade"):
        helm.install(local_cluster.kubeconfig, "wall", chart, namespace=namespace, values={"shade": "dark"})
    with pytest.raises(LocalClusterError, match="Helm can't render chart"):
        helm.template(chart, values={"colour": 3})


def test_a_chart_is_rendered_without_a_cluster(chart: Path) -> None:
    rendered = helm.template(chart, name="wall", values={"colour": "blue"})
    assert 'colour: "blue"' in rendered["paint/templates/paint.yaml"]
