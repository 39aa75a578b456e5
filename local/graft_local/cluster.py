"""A local Kubernetes cluster: start it, use it, stop it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from graft_process_node.lifeline import signal_process

from graft_local.binaries import ensure_binaries
from graft_local.certificates import ensure_certificates, kubeconfig_of
from graft_local.control_plane import parts
from graft_local.errors import LocalClusterError
from graft_local.network import ClusterNetwork, claim_network
from graft_local.progress import Progress
from graft_local.readiness import Readiness, tail
from graft_local.supervisor import SupervisorLock, claim_state, log_file, pid_file, run_under_warden

_POLL = 0.05
_STOP_SECONDS = 60.0
_KILL_SECONDS = 10.0


class LocalCluster:
    """A running cluster whose state lies in one directory. Leaving the `with` block stops it if `start` started it."""

    def __init__(self, state: Path, kubectl: Path, ours: _Supervising | None) -> None:
        self.state = state
        self.kubeconfig = kubeconfig_of(state, "admin")
        """The administrator's."""
        self.network = ClusterNetwork.read(state)
        self._kubectl = kubectl
        self._ours = ours

    @classmethod
    def start(
        cls,
        state: Path,
        *,
        node: bool = True,
        services: bool = True,
        detached: bool = False,
        timeout: float = 120.0,
        progress: Progress | None = None,
    ) -> LocalCluster:
        """Start the cluster in the directory `state`, or take the one that runs there, and wait until it is ready.

        Ready means: the API server says so, the namespace `default` has its service account, and with `node` the node
        is Ready. A directory that held a cluster before goes on with it. Unless `detached`, the cluster ends with this
        process, however this ends. `timeout` is in seconds and does not count the building of binaries.

        Raises:
            LocalClusterError: the binaries can't be had, a part does not start, or it took too long.
        """
        state = state.absolute()
        state.mkdir(parents=True, exist_ok=True)
        progress = progress or Progress()
        kubectl = ensure_binaries(progress)["kubectl"]
        ours = None
        if not SupervisorLock(state).is_held():
            ours = _Supervising.begin(state, node=node, services=services, detached=detached)
        with progress.step("starting the control plane") as step:
            try:
                Readiness(state, node=node).wait(timeout, _gives_up(ours, state), step.update)
            except BaseException:
                if ours is not None and not ours.failed():
                    stop(state)
                if ours is not None:
                    ours.end()
                raise
        if ours is not None and ours.failed():  # another start was faster; it is that one's to stop
            ours.end()
            ours = None
        return cls(state, kubectl, ours)

    @property
    def kubectl_binary(self) -> Path:
        """The kubectl of this cluster's version."""
        return self._kubectl

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 120.0) -> str:  # noqa: A002
        """Run kubectl as the administrator; its standard output. `input` is its standard input; `timeout` in seconds.

        Raises:
            LocalClusterError: it failed or took too long; what it wrote to standard error is told.
        """
        own = ["--kubeconfig", str(self.kubeconfig), "--cache-dir", str(self.state / "kubectl-cache")]
        command = [str(self._kubectl), *own, *arguments]
        shown = f"kubectl {' '.join(arguments)}"
        try:
            done = subprocess.run(command, check=False, input=input, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise LocalClusterError(f"`{shown}` took longer than {timeout:.0f} s") from None
        if done.returncode != 0:
            raise LocalClusterError(f"`{shown}` failed: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """What `kubectl get … -o json` answers, parsed.

        Raises:
            LocalClusterError: as `kubectl` does.
        """
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def claim_directory(self, namespace: str, claim: str) -> Path:
        """The directory behind a PersistentVolumeClaim, made if need be; the claim may come before or after."""
        directory = self.state / "claims" / namespace / claim
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def process(self, part: str) -> int:
        """The process id of a part (`etcd`, `kube-apiserver`, …, `node`, `services`, or `supervisor`).

        Raises:
            LocalClusterError: it does not run just now.
        """
        try:
            return int(pid_file(self.state, part).read_text())
        except (FileNotFoundError, ValueError):
            raise LocalClusterError(f"`{part}` does not run", hint=f"see {log_file(self.state, part)}") from None

    def stop(self) -> None:
        """Stop everything; the state stays. Nothing happens where nothing runs.

        Raises:
            LocalClusterError: something can't be ended.
        """
        stop(self.state)
        if self._ours is not None:
            self._ours.end()
            self._ours = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ours is not None:
            self.stop()


def supervise(state: Path, *, node: bool, services: bool, detached: bool, lifeline: int | None) -> int:
    """Run the cluster in this process until SIGTERM or SIGINT. `detached`: go to the background once it is ours.

    Returns:
        The exit status.

    Raises:
        LocalClusterError: another supervisor has this state or its addresses, or binaries can't be had.
    """
    state = state.absolute()
    state.mkdir(parents=True, exist_ok=True)
    lock = claim_state(state)
    network = claim_network(state)
    binaries = ensure_binaries(Progress())
    certificates = ensure_certificates(state, network.network)
    supervised = parts(state, network.network, certificates, binaries, node=node, services=services)
    if detached:
        if os.fork():
            os._exit(0)
        os.setsid()
    try:
        return run_under_warden(state, supervised, lifeline)
    finally:
        network.release()
        lock.release()


def stop(state: Path) -> bool:
    """Stop the cluster in the directory `state` and wait until all of it has ended; whether one ran.

    Raises:
        LocalClusterError: it can't be ended.
    """
    state = state.absolute()
    lock = SupervisorLock(state)
    if not lock.is_held():
        return False
    for which, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        with suppress(FileNotFoundError):  # it is about to be gone
            # The lock is held, so the process id that is recorded is its holder's and nobody else's.
            signal_process(int(pid_file(state, "supervisor").read_text()), which)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not lock.is_held():
                return True
            time.sleep(_POLL)
    raise LocalClusterError(f"the local cluster in `{state}` does not end", hint=f"see {log_file(state, 'supervisor')}")


class _Supervising:
    """The process that supervises the cluster, and the pipe that ties it to us; both are gone when it is detached."""

    def __init__(self, process: subprocess.Popen[bytes] | None, lifeline: int | None) -> None:
        self._process = process
        self._lifeline = lifeline

    @classmethod
    def begin(cls, state: Path, *, node: bool, services: bool, detached: bool) -> _Supervising | None:
        """Start it; `None`: another start was faster."""
        options = [*([] if node else ["--without-node"]), *([] if services else ["--without-services"])]
        command = [sys.executable, "-P", "-m", "graft_local", "supervise", "--state", str(state), *options]
        log_path = log_file(state, "supervisor")
        log_path.parent.mkdir(exist_ok=True)
        with log_path.open("ab") as log:
            if detached:
                done = subprocess.run(
                    [*command, "--detached"], check=False, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
                if done.returncode == 0:
                    return cls(None, None)
                if SupervisorLock(state).is_held():
                    return None
                raise LocalClusterError(f"the local cluster in `{state}` did not start:\n{tail(log_path)}")
            reading, writing = os.pipe()
            process = subprocess.Popen(
                [*command, "--lifeline", str(reading)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reading,),
                start_new_session=True,
            )
            os.close(reading)
            return cls(process, writing)

    def failed(self) -> bool:
        """Whether the process has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def end(self) -> None:
        """Let go of the pipe, which stops the cluster if it still runs, and wait."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._process is not None:
            self._process.wait(_STOP_SECONDS)
            self._process = None


def _gives_up(ours: _Supervising | None, state: Path) -> Callable[[], bool]:
    """Whether nobody supervises the cluster any more: ours has ended, and no other start was faster."""
    return lambda: ours is not None and ours.failed() and not SupervisorLock(state).is_held()
