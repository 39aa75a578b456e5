"""Helm 4 in this process, by the `helm-python-sdk` wheel: what `helm install|upgrade|uninstall|template` do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import helm_python

from graft_local.errors import LocalClusterError

Release = dict[str, Any]
"""A release as Helm tells it: `name`, `namespace`, `revision`, `status`, `manifest` and more."""


def install(
    kubeconfig: Path,
    name: str,
    chart: Path,
    *,
    namespace: str,
    values: Mapping[str, Any] | None = None,
    wait: bool = True,
    timeout: int = 120,
    create_namespace: bool = False,
) -> Release:
    """Install the chart in the directory `chart` as the release `name`; `timeout` is in seconds.

    Raises:
        LocalClusterError: the chart, the values or the cluster refuse it, or it was not ready in time.
    """
    with _config(kubeconfig, namespace, f"install release `{name}`") as config:
        release: Release = config.install(
            chart,
            name,
            dict(values or {}),
            namespace=namespace,
            wait=_waiting(wait),
            timeout=timeout,
            create_namespace=create_namespace,
        )
        return release


def upgrade(
    kubeconfig: Path,
    name: str,
    chart: Path,
    *,
    namespace: str,
    values: Mapping[str, Any] | None = None,
    wait: bool = True,
    timeout: int = 120,
) -> Release:
    """Upgrade the release to this chart and exactly these values; `timeout` is in seconds.

    Raises:
        LocalClusterError: there is no such release, it is refused, or it was not ready in time.
    """
    with _config(kubeconfig, namespace, f"upgrade release `{name}`") as config:
        release: Release = config.upgrade(
            chart,
            name,
            dict(values or {}),
            namespace=namespace,
            wait=_waiting(wait),
            timeout=timeout,
            reset_values=True,
        )
        return release


def uninstall(kubeconfig: Path, name: str, *, namespace: str, wait: bool = True, timeout: int = 120) -> None:
    """Remove the release and what it made; one that isn't there is no fault. `timeout` is in seconds.

    Raises:
        LocalClusterError: the cluster refuses, or what it made was not gone in time.
    """
    with _config(kubeconfig, namespace, f"uninstall release `{name}`") as config:
        config.uninstall(name, ignore_not_found=True, wait=_waiting(wait), timeout=timeout)


def template(
    chart: Path,
    *,
    name: str = "graft",
    namespace: str = "default",
    values: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Render the chart without a cluster: template path → manifests as YAML. The values are checked by its schema.

    Raises:
        LocalClusterError: the chart or the values are wrong.
    """
    with _told(f"render chart `{chart}`"), helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(loaded.merge_values(dict(values or {})))
        rendered: dict[str, str] = loaded.render(dict(values or {}), name=name, namespace=namespace)
        return rendered


@contextmanager
def _config(kubeconfig: Path, namespace: str, doing: str) -> Iterator[Any]:
    with (
        _told(doing),
        helm_python.Config(kubeconfig_path=kubeconfig, namespace=namespace, qps=200.0, burst_limit=400) as config,
    ):
        yield config


@contextmanager
def _told(doing: str) -> Iterator[None]:
    try:
        yield
    except helm_python.HelmError as error:
        raise LocalClusterError(f"Helm can't {doing}: {error}") from error


def _waiting(wait: bool) -> str:
    return "watcher" if wait else "hookOnly"
