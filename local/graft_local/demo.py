"""The tour: a cluster, the chart, a real model, adapters that come and go, and what they answer."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from graft_local import helm
from graft_local.cache import cache_directory
from graft_local.cluster import LocalCluster
from graft_local.demo_client import Answer, complete, side_by_side, wait_until_routed
from graft_local.errors import LocalClusterError
from graft_local.gemma import BASE_NAME, ensure_checkpoint
from graft_local.progress import Progress
from graft_local.supervisor import SupervisorLock

NAMESPACE = "demo"
OPERATOR_NAMESPACE = "graft-system"
RELEASE = "graft"
POOL = "gemma"
CHART_VALUES = {"bindAddress": "podIP", "replicas": 1}

PROMPT = "Question: What is the sea?\nAnswer:"
FIRST = ("pirate", "haiku", "json")
FOURTH = "emoji"
REMOVED = "pirate"
PART, MERGED = "haiku", "haiku-merged"
"""An adapter, and the name that it has once it is merged into the base."""

_REPOSITORY = Path(__file__).parents[2]
CHART = _REPOSITORY / "charts" / "graft"
EXAMPLES = _REPOSITORY / "examples"

_READY_SECONDS = 600
_REMOVAL_SECONDS = 60.0
_LOG_LINES = 30
_OLD_SECONDS = 3600.0


def run(state: Path) -> int:
    """The whole tour in a cluster of its own below `state`; it ends everything that it started.

    Returns:
        The exit status: 0 when everything was as it should be.
    """
    progress = Progress()
    state.mkdir(parents=True, exist_ok=True)
    _forget_old_runs(state)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=state))
    try:
        with LocalCluster.start(directory, progress=progress) as cluster:
            _tour_with_diagnosis(cluster, progress)
    except LocalClusterError as error:
        _say(f"\nthe demo failed: {error}\nThe logs of the cluster are in {directory / 'logs'}")
        return 1
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)
    _say("Everything has been ended.")
    return 0


def set_up(cluster: LocalCluster, progress: Progress | None = None) -> None:
    """Make the cluster ready for `examples/`: model and adapters in the claims of the namespace `demo`, the chart.

    May be repeated.

    Raises:
        LocalClusterError: the model can't be had, or the chart can't be installed.
    """
    progress = progress or Progress()
    if not CHART.is_dir():
        raise LocalClusterError(
            f"there is no chart in `{CHART}`", hint="run this from a clone of the repository, set up by `make setup`"
        )
    fill_claims(cluster, NAMESPACE, ensure_checkpoint(cache_directory(), progress))
    cluster.kubectl("apply", "-f", "-", input=f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}")
    install_chart(cluster, progress)


def fill_claims(cluster: LocalCluster, namespace: str, checkpoint: Path) -> None:
    """Put the base model and the example adapters where the claims `models` and `shelf` of `namespace` read them."""
    _place(checkpoint, cluster.claim_directory(namespace, "models") / BASE_NAME)
    for adapter in sorted((EXAMPLES / "adapters").iterdir()):
        _place(adapter, cluster.claim_directory(namespace, "shelf") / adapter.name)


def install_chart(cluster: LocalCluster, progress: Progress) -> None:
    """Install the chart as release `graft` in `graft-system`, or upgrade it, and wait until the operator is ready.

    Raises:
        LocalClusterError: Helm or the cluster refuses, or it took longer than three minutes.
    """
    with progress.step("installing the chart"):
        installed = cluster.get("secrets", "-n", OPERATOR_NAMESPACE, "-l", f"owner=helm,name={RELEASE}")["items"]
        if installed:
            helm.upgrade(
                cluster.kubeconfig, RELEASE, CHART, namespace=OPERATOR_NAMESPACE, values=CHART_VALUES, timeout=180
            )
        else:
            helm.install(
                cluster.kubeconfig,
                RELEASE,
                CHART,
                namespace=OPERATOR_NAMESPACE,
                values=CHART_VALUES,
                timeout=180,
                create_namespace=True,
            )


def _forget_old_runs(state: Path) -> None:
    """Remove what killed or failed runs left, unless they are so young that they may only be starting."""
    for directory in state.glob("run-*"):
        if time.time() - directory.stat().st_mtime > _OLD_SECONDS and not SupervisorLock(directory).is_held():
            shutil.rmtree(directory, ignore_errors=True)


def _tour_with_diagnosis(cluster: LocalCluster, progress: Progress) -> None:
    try:
        set_up(cluster, progress)
        tour(cluster, progress)
    except LocalClusterError:
        _say(_diagnosis(cluster))
        raise


def tour(cluster: LocalCluster, progress: Progress) -> None:
    """Apply the examples, ask, add an adapter, remove one, merge one into the base.

    Raises:
        LocalClusterError: something was not as it should be.
    """
    _apply(cluster, EXAMPLES)
    _wait_until_ready(cluster, progress)
    address = service_address(cluster, NAMESPACE, POOL)
    wait_until_routed(address)
    _say(f"\nThe same prompt for the base and three adapters, at http://{address}/v1/completions:\n{PROMPT}\n")
    answers = _ask(address, (BASE_NAME, *FIRST))
    _say(side_by_side(answers))
    _expect(len(set(answers.values())) == len(answers), "the base and the adapters to answer differently")

    _say(f"\nA fourth adapter, `{FOURTH}`:")
    before = pods(cluster, NAMESPACE, POOL)
    _expect(complete(address, FOURTH, PROMPT).status == 404, f"`{FOURTH}` to be unknown before it is added")
    _apply(cluster, EXAMPLES / "changes" / "fourth-adapter.yaml")
    _wait_until_ready(cluster, progress)
    _say(side_by_side(_ask(address, (FOURTH,))))
    _expect_same_pods(cluster, before)

    _say(f"\nWithout `{REMOVED}`:")
    _apply(cluster, EXAMPLES / "changes" / "pirate-removed.yaml")
    _wait_until_ready(cluster, progress)
    _show_removal(address)
    _expect_same_pods(cluster, before)
    _show_merge(cluster, progress, address)


def service_address(cluster: LocalCluster, namespace: str, pool: str) -> str:
    """HOST:PORT of the pool's Service, by its ClusterIP: there is no DNS here."""
    spec = cluster.get("service", pool, "-n", namespace)["spec"]
    return f"{spec['clusterIP']}:{spec['ports'][0]['port']}"


def pods(cluster: LocalCluster, namespace: str, pool: str) -> dict[str, int]:
    """The pool's pods: UID → how often their containers were restarted."""
    items = cluster.get("pods", "-n", namespace, "-l", f"graft.dev/deployment={pool}")["items"]
    return {
        pod["metadata"]["uid"]: sum(s["restartCount"] for s in pod["status"].get("containerStatuses", ()))
        for pod in items
    }


def _ask(address: str, models: Sequence[str]) -> dict[str, str]:
    return {model: complete(address, model, PROMPT, stop="\nQuestion").text for model in models}


def _apply(cluster: LocalCluster, manifests: Path) -> None:
    _say(f"$ kubectl apply -n {NAMESPACE} -f {manifests.relative_to(_REPOSITORY)}")
    _say(cluster.kubectl("apply", "-n", NAMESPACE, "-f", str(manifests)).rstrip())


def _wait_until_ready(cluster: LocalCluster, progress: Progress) -> None:
    command = ("wait", "-n", NAMESPACE, "--for=condition=Ready", f"ad/{POOL}", f"--timeout={_READY_SECONDS}s")
    _say(f"$ kubectl {' '.join(command)}")
    with progress.step("waiting for the pool") as step, ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(cluster.kubectl, *command, timeout=_READY_SECONDS + 30.0)
        while not waiting.done():
            step.update(_state_of_pool(cluster))
            time.sleep(1.0)
        said = waiting.result()
    _say(said.rstrip())


def _state_of_pool(cluster: LocalCluster) -> str:
    conditions = cluster.get("ad", POOL, "-n", NAMESPACE).get("status", {}).get("conditions", ())
    messages = [str(condition["message"]) for condition in conditions if condition["type"] == "Ready"]
    return (messages or [""])[0].partition("\n")[0] or "no condition yet"


def _show_removal(address: str) -> None:
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while (answer := complete(address, REMOVED, PROMPT, max_tokens=1)).status == 200:
        _expect(time.monotonic() < deadline, f"`{REMOVED}` to stop answering within {_REMOVAL_SECONDS:.0f} s")
        time.sleep(0.2)
    _expect(answer.status == 404, f"HTTP 404 for `{REMOVED}`, not {answer.status}: {answer.error}")
    _say(f"HTTP {answer.status}: {answer.error}")


def _show_merge(cluster: LocalCluster, progress: Progress, address: str) -> None:
    _say(f"\nMerged mode: `{PART}` folded into the base's weights, as `{MERGED}`:")
    hot = _ask(address, (PART,))
    _apply(cluster, EXAMPLES / "changes" / "merged.yaml")
    _wait_until_ready(cluster, progress)
    refused = [_wait_for_status(address, name, 404) for name in (PART, BASE_NAME)]
    _wait_for_status(address, MERGED, 200)
    _say(side_by_side(hot | _ask(address, (MERGED,))))
    _say(f"HTTP {refused[-1].status}: {refused[-1].error}")


def _wait_for_status(address: str, name: str, status: int) -> Answer:
    """The Service hears of the new pods a moment after us, and may still lead to one that is going away."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while (answer := complete(address, name, PROMPT, max_tokens=1)).status != status:
        _expect(time.monotonic() < deadline, f"HTTP {status} for `{name}`, not {answer.status}: {answer.body}")
        time.sleep(0.2)
    return answer


def _expect_same_pods(cluster: LocalCluster, before: dict[str, int]) -> None:
    after = pods(cluster, NAMESPACE, POOL)
    _expect(after == before, f"the same pods without a restart; before: {before}, after: {after}")
    for uid, restarts in after.items():
        _say(f"still the same pod: {uid}, {restarts} restarts")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise LocalClusterError(f"expected {what}")


def _diagnosis(cluster: LocalCluster) -> str:
    """What a person would look at next; parts that can't be had are left out with the reason."""
    looks = (
        ("describe", "ad,pods,events", "-n", NAMESPACE),
        ("logs", "-n", NAMESPACE, "-l", f"graft.dev/deployment={POOL}", f"--tail={_LOG_LINES}"),
        ("get", "pods", "-n", OPERATOR_NAMESPACE, "-o", "wide"),
        ("logs", "-n", OPERATOR_NAMESPACE, f"deployment/{RELEASE}-operator", f"--tail={_LOG_LINES}"),
    )
    told = []
    for look in looks:
        try:
            told.append(f"$ kubectl {' '.join(look)}\n{cluster.kubectl(*look, timeout=20.0)}")
        except LocalClusterError as error:
            told.append(str(error))
    return "\n".join(told)


def _place(source: Path, target: Path) -> None:
    """Make `target` a copy of the directory `source`, by hard links where the file system allows it."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _say(text: str) -> None:
    print(text, flush=True)
    sys.stderr.flush()
