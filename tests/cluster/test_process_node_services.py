"""Services of the local cluster: a ClusterIP leads to the ready pods."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from graft_local.cluster import LocalCluster

from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

# Answers every line with its own name; ready while its directory has no file `unready`.
ECHO = """
import os, socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for _ in self.rfile:
            self.wfile.write(os.environ["POD"].encode() + b"\\n")
socketserver.ThreadingTCPServer((os.environ["IP"], 7000), Handler).serve_forever()
"""


def manifests(service: dict[str, Any], *, replicas: int) -> str:
    container = {
        "name": "echo",
        "image": "ignored",
        "command": ["python", "-c", ECHO],
        "env": [
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in (("IP", "status.podIP"), ("POD", "metadata.name"))
        ],
        "ports": [{"name": "echo", "containerPort": 7000}],
        "readinessProbe": {
            "exec": {"command": ["sh", "-c", "test ! -e $0/unready", "/data"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    template = {
        "metadata": {"labels": {"app": "echo"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "echo"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "echo"}}, "template": template},
    }
    made = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo"}, "spec": service}
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [deployment, made]})


def ask(address: tuple[str, int]) -> str:
    """The name of the pod that answers, or the fault."""
    try:
        with socket.create_connection(address, timeout=5) as connection:
            return say(connection)
    except OSError as error:
        return type(error).__name__


def say(connection: socket.socket) -> str:
    connection.sendall(b"hello\n")
    return connection.recv(1024).decode().strip()


def answers(address: tuple[str, int], names: set[str]) -> Callable[[], bool]:
    return lambda: {ask(address) for _ in range(4)} == names


def test_a_service_follows_its_pods(local_cluster: LocalCluster, namespace: str) -> None:
    def kubectl(*arguments: str, **more: Any) -> str:
        return local_cluster.kubectl("-n", namespace, *arguments, **more)

    spec = {"selector": {"app": "echo"}, "ports": [{"port": 70, "targetPort": "echo"}]}
    kubectl("apply", "-f", "-", input=manifests(spec, replicas=0))
    address = (local_cluster.get("-n", namespace, "service", "echo")["spec"]["clusterIP"], 70)
    wait_until(lambda: ask(address) == "ConnectionResetError", "without a ready pod the connection is reset")
    kubectl("scale", "deployment/echo", "--replicas=2")
    kubectl("rollout", "status", "deployment/echo", "--timeout=20s")
    pods = {one["metadata"]["name"]: one for one in local_cluster.get("-n", namespace, "pods")["items"]}
    wait_until(answers(address, set(pods)), "both pods answer in turn")

    # One pod turns unready: no new connection reaches it, the one it has goes on.
    with socket.create_connection(address, timeout=5) as connection:
        held = say(connection)
        (other,) = pods.keys() - {held}
        data = local_cluster.state / "pods" / pods[held]["metadata"]["uid"] / "volumes" / "data"
        (data / "unready").touch()
        wait_until(answers(address, {other}), "only the ready pod answers")
        assert say(connection) == held
    (data / "unready").unlink()
    wait_until(answers(address, set(pods)), "both answer again")

    kubectl("scale", "deployment/echo", "--replicas=0")
    wait_until(lambda: ask(address) == "ConnectionResetError", "none answers")
    kubectl("delete", "service", "echo")
    wait_until(lambda: ask(address) == "ConnectionRefusedError", "nothing listens")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"type": "NodePort", "ports": [{"port": 70}]}, "spec.type NodePort"),
        ({"clusterIP": "None", "ports": [{"port": 70}]}, "spec.clusterIP None"),
    ],
)
def test_what_a_service_asks_for_in_vain_is_told(
    local_cluster: LocalCluster, namespace: str, spec: dict[str, Any], told: str
) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "vain"}, "spec": spec}
    local_cluster.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(service))

    def is_told() -> bool:
        found = local_cluster.get("-n", namespace, "events", "--field-selector", "involvedObject.name=vain")
        return any(told in event["message"] for event in found["items"])

    wait_until(is_told, "an event")
