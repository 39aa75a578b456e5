"""The API of custom metrics that Kubernetes' autoscaler asks, answered from what pods tell of themselves at the time.

As an adapter for Prometheus answers it: https://github.com/kubernetes-sigs/custom-metrics-apiserver.
"""

from __future__ import annotations

import http.server
import json
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from graft_local.certificates import certificates_of
from graft_local.cluster import LocalCluster
from prometheus_client.parser import text_string_to_metric_families

GROUP, VERSION = "custom.metrics.k8s.io", "v1beta2"
_API = f"/apis/{GROUP}/{VERSION}"


@contextmanager
def metrics_api(cluster: LocalCluster, metric: str) -> Iterator[None]:
    """Serve `metric`, a gauge of the pods, as part of the cluster's API within the block."""
    certificate = certificates_of(cluster.state).api_server
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster, metric))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    objects = json.dumps(_objects(server.server_port))
    try:
        cluster.kubectl("apply", "-f", "-", input=objects)
        cluster.kubectl("wait", "--for=condition=Available", f"apiservice/{VERSION}.{GROUP}", "--timeout=60s")
        yield
    finally:
        cluster.kubectl("delete", "-f", "-", input=objects)
        server.shutdown()
        thread.join()
        server.server_close()


def _objects(port: int) -> dict[str, Any]:
    """The registration, and a Service that leads to this machine."""
    service = {"name": "metrics", "namespace": "kube-system"}
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": service,
                "spec": {"type": "ExternalName", "externalName": "localhost"},
            },
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": f"{VERSION}.{GROUP}"},
                "spec": {
                    "group": GROUP,
                    "version": VERSION,
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                    "service": service | {"port": port},
                    "insecureSkipTLSVerify": True,
                },
            },
        ],
    }


def _handler(cluster: LocalCluster, metric: str) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            parts = unquote(url.path.removeprefix(_API)).strip("/").split("/")
            match parts:
                case [""]:
                    self._answer(_resources(metric))
                case ["namespaces", namespace, "pods", "*", asked] if asked == metric:
                    (selector,) = parse_qs(url.query)["labelSelector"]
                    pods = cluster.get("pods", "-n", namespace, "-l", selector)["items"]
                    self._answer(_values(metric, pods))
                case _:
                    self.send_error(404)

        def _answer(self, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    return Handler


def _resources(metric: str) -> dict[str, Any]:
    resource = {"name": f"pods/{metric}", "singularName": "", "namespaced": True, "kind": "MetricValueList"}
    return {
        "apiVersion": "v1",
        "kind": "APIResourceList",
        "groupVersion": f"{GROUP}/{VERSION}",
        "resources": [resource | {"verbs": ["get"]}],
    }


def _values(metric: str, pods: list[dict[str, Any]]) -> dict[str, Any]:
    """The metric of each pod that tells it; as with Prometheus, the others are left out."""
    items = []
    for pod in pods:
        try:
            value = _value(metric, pod["status"]["podIP"])
        except (OSError, KeyError):
            continue
        about = {"apiVersion": "v1", "kind": "Pod"} | {key: pod["metadata"][key] for key in ("name", "namespace")}
        when = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        items.append({"describedObject": about, "metric": {"name": metric}, "timestamp": when, "value": f"{value:.0f}"})
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "MetricValueList", "metadata": {}, "items": items}


def _value(metric: str, address: str) -> float:
    with urllib.request.urlopen(f"http://{address}:8002/metrics", timeout=5.0) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            if family.name == metric:
                return float(family.samples[0].value)
    raise KeyError(metric)
