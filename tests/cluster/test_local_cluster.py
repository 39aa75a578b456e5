"""The control plane as it really runs: it comes back from every kill, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from graft_local.cluster import LocalCluster, stop
from graft_local.errors import LocalClusterError
from graft_local.network import ClusterNetwork
from graft_local.supervisor import pid_file
from graft_process_node.lifeline import descendants

from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
SETTINGS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green}
"""


def succeeds(work: Callable[[], object]) -> bool:
    try:
        work()
    except LocalClusterError:
        return False
    return True


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # also when it ends while it is read
        return False
    return state not in "ZX"


def all_processes(cluster: LocalCluster) -> set[int]:
    supervisor = cluster.process("supervisor")
    return {supervisor, *descendants(supervisor)}


def recorded(cluster: LocalCluster, part: str) -> int | None:
    try:
        return cluster.process(part)
    except LocalClusterError:
        return None


@pytest.fixture(scope="module")
def bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A control plane of our own that we may hurt."""
    with LocalCluster.start(tmp_path_factory.mktemp("bare"), node=False, services=False) as cluster:
        yield cluster


def test_the_api_server_answers_as_the_pinned_version_from_loopback_addresses(bare_cluster: LocalCluster) -> None:
    assert "Server Version: v1.34." in bare_cluster.kubectl("version")
    service = bare_cluster.get("service", "kubernetes")
    assert service["spec"]["clusterIP"] == str(bare_cluster.network.service_range[1])


def test_controllers_work(bare_cluster: LocalCluster) -> None:
    bare_cluster.kubectl("create", "deployment", "idle", "--image=none", "--replicas=2")
    wait_until(lambda: len(bare_cluster.get("pods", "-l", "app=idle")["items"]) == 2, "two pods")
    bare_cluster.kubectl("delete", "deployment", "idle")
    wait_until(lambda: not bare_cluster.get("pods", "-l", "app=idle")["items"], "pods collected")


def test_a_fault_of_kubectl_is_told(bare_cluster: LocalCluster) -> None:
    with pytest.raises(LocalClusterError, match='pods "absent" not found'):
        bare_cluster.kubectl("get", "pod", "absent")


@pytest.mark.parametrize("part", PARTS)
def test_a_killed_part_comes_back_with_what_was_stored(bare_cluster: LocalCluster, part: str) -> None:
    bare_cluster.kubectl("apply", "-f", "-", input=SETTINGS)
    before = bare_cluster.process(part)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: recorded(bare_cluster, part) not in {None, before}, f"a new {part}")
    wait_until(lambda: succeeds(lambda: bare_cluster.kubectl("get", "--raw", "/readyz")), "ready again")
    assert bare_cluster.get("configmap", "settings")["data"] == {"colour": "green"}
    # Writes and controllers work as well: a new namespace gets its service account.
    bare_cluster.kubectl("create", "namespace", f"after-{part}")
    wait_until(
        lambda: succeeds(lambda: bare_cluster.kubectl("get", "serviceaccount", "default", "-n", f"after-{part}")),
        "a service account in a new namespace",
    )


def test_a_second_start_takes_the_cluster_that_runs(bare_cluster: LocalCluster) -> None:
    with LocalCluster.start(bare_cluster.state, node=False, services=False) as again:
        assert again.process("supervisor") == bare_cluster.process("supervisor")
    assert is_alive(bare_cluster.process("etcd"))  # it was not the second one's to stop


def test_two_starts_at_once_share_one_cluster(tmp_path: Path) -> None:
    def start(_: int) -> LocalCluster:
        return LocalCluster.start(tmp_path, node=False, services=False)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(start, range(2))
    with one, two:
        assert one.process("supervisor") == two.process("supervisor")
        assert len(descendants(one.process("supervisor"))) == len(PARTS)
    assert stop(tmp_path) is False


def test_a_state_directory_has_one_supervisor(bare_cluster: LocalCluster) -> None:
    command = [sys.executable, "-m", "graft_local", "supervise", "--state", str(bare_cluster.state)]
    second = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert "runs in" in second.stderr
    assert "hint:" in second.stderr
    assert is_alive(bare_cluster.process("supervisor"))


@pytest.mark.parametrize("detached", [False, True])
def test_why_a_cluster_did_not_start_is_told(bare_cluster: LocalCluster, tmp_path: Path, detached: bool) -> None:
    shutil.copy(bare_cluster.state / "network.json", tmp_path)
    with pytest.raises(LocalClusterError, match=r"(?s)did not start:.*another local cluster uses the addresses"):
        LocalCluster.start(tmp_path, node=False, services=False, detached=detached)


@pytest.mark.parametrize("detached", [False, True])
def test_a_start_that_takes_too_long_is_told_and_ended(tmp_path: Path, detached: bool) -> None:
    with pytest.raises(LocalClusterError, match="there is still no API server"):
        LocalCluster.start(tmp_path, node=False, services=False, detached=detached, timeout=0.1)
    assert stop(tmp_path) is False


def test_stopped_and_started_again_it_is_the_same_cluster_and_another_is_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with LocalCluster.start(one, node=False, services=False) as cluster:
        cluster.kubectl("apply", "-f", "-", input=SETTINGS)
        processes = all_processes(cluster)
        with LocalCluster.start(two, node=False, services=False) as other:
            assert other.network != cluster.network
            assert not other.get("configmaps", "--field-selector", "metadata.name=settings")["items"]
        started = time.monotonic()
        cluster.stop()
        assert time.monotonic() - started < 20
        assert not any(map(is_alive, processes))
    with LocalCluster.start(one, node=False, services=False) as cluster:
        assert cluster.get("configmap", "settings")["data"] == {"colour": "green"}


@pytest.mark.parametrize("victim", ["supervisor", "warden"])
def test_a_killed_supervisor_leaves_no_process(tmp_path: Path, victim: str) -> None:
    with LocalCluster.start(tmp_path, node=False, services=False) as cluster:
        supervisor = cluster.process("supervisor")
        warden = int(Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1])
        processes = all_processes(cluster) | {warden}
        assert len(processes) == len(PARTS) + 2
        os.kill(supervisor if victim == "supervisor" else warden, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, processes)), "all processes ended", seconds=20)


def test_a_cluster_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from graft_local.cluster import LocalCluster
cluster = LocalCluster.start(Path({str(tmp_path)!r}), node=False, services=False)
print("ready", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        supervisor = int(pid_file(tmp_path, "supervisor").read_text())
        processes = {supervisor, *descendants(supervisor)}
        assert len(processes) == len(PARTS) + 1
        owner.kill()
    wait_until(lambda: not any(map(is_alive, processes)), "all processes ended", seconds=20)


def test_killed_parts_of_a_whole_cluster_leave_no_process_of_a_pod(tmp_path: Path) -> None:
    with LocalCluster.start(tmp_path) as cluster:
        script = "sleep 600 & setsid sleep 601 & wait"
        cluster.kubectl("run", "family", "--image=none", "--command", "--", "sh", "-c", script)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/family", "--timeout=30s")
        node = cluster.process("node")
        family = {*descendants(node)}
        assert len(family) >= 3
        os.kill(node, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, family)), "the pod's processes ended", seconds=20)
        wait_until(lambda: recorded(cluster, "node") not in {None, node}, "a new node agent")
        everything = all_processes(cluster)
        os.kill(cluster.process("supervisor"), signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, everything)), "all processes ended", seconds=20)


def test_up_status_and_down_from_the_command_line(tmp_path: Path) -> None:
    def graft_local(command: str, *options: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "graft_local", command, "--state", str(tmp_path), *options]
        return subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)

    try:
        first = graft_local("up", "--bare")
        assert first.returncode == 0, first.stderr
        assert f"export KUBECONFIG={tmp_path}/kubeconfig" in first.stdout
        assert graft_local("up", "--bare").returncode == 0
        status = graft_local("status")
        assert {line.split("\t")[0] for line in status.stdout.splitlines()} == {
            *PARTS,
            "node",
            "services",
            "supervisor",
        }
    finally:
        down = graft_local("down")
    assert (down.returncode, down.stdout) == (0, "the local cluster has stopped\n")
    assert graft_local("status").returncode == 1


def test_detached_it_outlives_its_starter_until_it_is_stopped(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from graft_local.cluster import LocalCluster
LocalCluster.start(Path({str(tmp_path)!r}), node=False, services=False, detached=True)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
    try:
        supervisor = int(pid_file(tmp_path, "supervisor").read_text())
        processes = {supervisor, *descendants(supervisor)}
        assert all(map(is_alive, processes))
        ClusterNetwork.read(tmp_path)
    finally:
        assert stop(tmp_path) is True
    assert not any(map(is_alive, processes))
    assert stop(tmp_path) is False
