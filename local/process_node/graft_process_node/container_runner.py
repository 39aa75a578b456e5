"""One container of a pod: run, probe, restart with back-off, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_process_node.back_off import BackOff, runs_again
from graft_process_node.container_process import ContainerProcess, Ending, StartError, start
from graft_process_node.pod_status import ContainerRecord, running, terminated, waiting
from graft_process_node.probe_state import ProbeSettings, ProbeState
from graft_process_node.probing import ProbeTarget, ask
from graft_process_node.process_spec import ContainerConfigError, ProcessSpec

_log = logging.getLogger(__name__)
_CONFIG_RETRY_FIRST = 0.5
_CONFIG_RETRY_LONGEST = 10.0
_MESSAGE_BYTES = 4096
_LOG_MESSAGE_BYTES = 2048


@dataclass(frozen=True)
class ContainerSetting:
    """What one container needs from its pod.

    Args:
        spec: the container.
        restart_policy: the pod's.
        prepare: makes its process anew before each run.
        changed: called after each change of the record.
        event: reports (warning, reason, message).
        directory: its own: log files and the termination message.
        marker: names it in the environment of its processes.
    """

    spec: Mapping[str, Any]
    restart_policy: str
    prepare: Callable[[], Awaitable[ProcessSpec]]
    changed: Callable[[], None]
    event: Callable[[bool, str, str], None]
    directory: Path
    marker: str
    pod_ip: str
    grace_seconds: float

    @property
    def termination_log(self) -> Path:
        return self.directory / "termination-log"

    def log(self, run: int) -> Path:
        """The log of the run with this restart count."""
        return self.directory / f"{run}.log"


class ContainerRunner:
    """Runs one container until its restart policy is satisfied or it is told to stop.

    Args:
        record: what is known of it, which this keeps up to date.
    """

    def __init__(self, setting: ContainerSetting, record: ContainerRecord, back_off: BackOff | None = None) -> None:
        self._setting = setting
        self.record = record
        self._back_off = back_off or BackOff()
        self._process: ContainerProcess | None = None
        self._target: ProbeTarget | None = None
        self._stopping = False
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Until it does not run again. Cancelling it kills the container."""
        if "terminated" in self.record.state:  # a run before this agent's time
            self._begin_again()
        while True:
            ending = await self._run_once()
            if self._stopping or not runs_again(self._setting.restart_policy, ending.exit_code):
                return
            await self._pause(ending)
            self._begin_again()

    async def stop(self, deadline: float, why: str) -> None:
        """End it for good: the preStop hook, SIGTERM, and at `deadline` (on the loop's clock) SIGKILL.

        Cancel `run` afterwards; it may wait for its next run.
        """
        self._stopping = True
        if self._process is not None:
            await self._stop_process(self._process, deadline, why)
            await self._stopped.wait()

    def kill_at(self, deadline: float) -> None:
        """SIGKILL no later than `deadline`, on the loop's clock."""
        if self._process is not None:
            asyncio.get_running_loop().call_at(deadline, self._process.kill)

    def _begin_again(self) -> None:
        self.record.last_state = self.record.state if "terminated" in self.record.state else self.record.last_state
        self.record.restart_count += 1

    async def _run_once(self) -> Ending:
        process_spec = await self._prepared()
        log = self._setting.log(self.record.restart_count)
        self._remove_old_logs()
        self._setting.termination_log.write_bytes(b"")
        try:
            process = await start(
                process_spec.arguments,
                process_spec.environment,
                process_spec.directory,
                marker=self._setting.marker,
                log=log,
            )
        except StartError as error:
            return self._start_failed(str(error))
        self._process, self._stopped = process, asyncio.Event()
        self._target = ProbeTarget(self._setting.spec, process_spec, self._setting.pod_ip, self._setting.marker)
        try:
            return await self._attend(process, self._target)
        finally:
            self._process = None
            self._stopped.set()

    async def _prepared(self) -> ProcessSpec:
        wait = _CONFIG_RETRY_FIRST
        while True:
            try:
                return await self._setting.prepare()
            except ContainerConfigError as error:
                self.record.state = waiting("CreateContainerConfigError", str(error))
                self._setting.changed()
                self._setting.event(True, "Failed", f"Error: {error}")
            await asyncio.sleep(wait)
            wait = min(_CONFIG_RETRY_LONGEST, 2 * wait)

    async def _attend(self, process: ContainerProcess, target: ProbeTarget) -> Ending:
        """Probe it while it runs."""
        record, spec = self.record, self._setting.spec
        record.container_id = f"process://{process.pid}"
        record.state = running(process.started_at)
        record.started = not spec.get("startupProbe")
        record.ready = record.started and not spec.get("readinessProbe")
        self._setting.event(False, "Started", f"Started container {record.name} as process {process.pid}")
        self._setting.changed()
        probes = asyncio.create_task(self._probe(process, target))
        try:
            ending = await process.wait()
        except asyncio.CancelledError:
            await asyncio.shield(process.end())
            raise
        finally:
            probes.cancel()
            (fault,) = await asyncio.gather(probes, return_exceptions=True)
            if isinstance(fault, Exception):
                _log.error("probes of %s broke", self._setting.marker, exc_info=fault)
        record.started = record.ready = False
        record.state = terminated(
            ending.exit_code,
            "Completed" if ending.exit_code == 0 else "Error",
            started_at=ending.started_at,
            finished_at=ending.finished_at,
            signal_number=ending.signal_number,
            message=self._last_words(ending),
            container_id=record.container_id,
        )
        self._setting.changed()
        return ending

    async def _probe(self, process: ContainerProcess, target: ProbeTarget) -> None:
        """The startup probe first, then readiness and liveness side by side."""
        spec = self._setting.spec
        if spec.get("startupProbe"):
            await self._follow(process, target, "startup")
        async with asyncio.TaskGroup() as group:
            for kind in ("readiness", "liveness"):
                if spec.get(f"{kind}Probe"):
                    group.create_task(self._follow(process, target, kind))

    async def _follow(self, process: ContainerProcess, target: ProbeTarget, kind: str) -> None:
        """One probe; returns when a startup probe has succeeded, or the container was stopped for a failure."""
        probe = self._setting.spec[f"{kind}Probe"]
        settings = ProbeSettings.of(probe)
        state = ProbeState(settings)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(settings.initial_delay)
        while True:
            begun = loop.time()
            answer = await ask(probe, target, settings.timeout)
            if self._stopping and kind != "readiness":
                return
            if not answer.success:
                self._setting.event(True, "Unhealthy", f"{kind.capitalize()} probe failed: {answer.message}")
            if state.observe(answer.success) and await self._decide(process, kind, settings, answer.success):
                return
            await asyncio.sleep(max(0.0, settings.period - (loop.time() - begun)))

    async def _decide(self, process: ContainerProcess, kind: str, settings: ProbeSettings, success: bool) -> bool:
        """Act on a probe's verdict.

        Returns:
            Whether this probe is over.
        """
        if kind == "readiness":
            self.record.ready = success
            self._setting.changed()
            return False
        if success:
            if kind == "startup":
                self.record.started = True
                self.record.ready = not self._setting.spec.get("readinessProbe")
                self._setting.changed()
            return kind == "startup"
        grace = settings.termination_grace_period
        seconds = self._setting.grace_seconds if grace is None else grace
        why = f"Container {self.record.name} failed {kind} probe, will be restarted"
        # Not in this task: it ends with the process, and the stop has to see the end through.
        stop = asyncio.create_task(self._stop_process(process, asyncio.get_running_loop().time() + seconds, why))
        await asyncio.shield(stop)
        return True

    async def _stop_process(self, process: ContainerProcess, deadline: float, why: str) -> None:
        self._setting.event(False, "Killing", why)
        loop = asyncio.get_running_loop()
        loop.call_at(deadline, process.kill)
        hook = (self._setting.spec.get("lifecycle") or {}).get("preStop")
        if hook and self._target is not None and deadline > loop.time():
            answer = await ask(hook, self._target, deadline - loop.time())
            if not answer.success:
                self._setting.event(True, "FailedPreStopHook", f"PreStopHook failed: {answer.message}")
        process.send()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), max(0.0, deadline - loop.time()))
        await process.end()

    def _start_failed(self, message: str) -> Ending:
        moment = time.time()
        ending = Ending(128, 0, moment, moment, message)
        self._setting.event(True, "Failed", f"Error: {message}")
        self.record.state = terminated(128, "StartError", started_at=moment, finished_at=moment, message=message)
        self.record.started = self.record.ready = False
        self._setting.changed()
        return ending

    async def _pause(self, ending: Ending) -> None:
        wait = self._back_off.after_run(ending.finished_at - ending.started_at)
        if wait <= 0:
            return
        self.record.last_state = self.record.state
        message = f"back-off {wait:g}s restarting failed container={self.record.name}"
        self.record.state = waiting("CrashLoopBackOff", message)
        self._setting.event(True, "BackOff", f"Back-off restarting failed container {self.record.name}")
        self._setting.changed()
        await asyncio.sleep(wait)

    def _last_words(self, ending: Ending) -> str:
        """The termination message: the file that the container wrote, else with that policy the end of its log."""
        try:
            written = self._setting.termination_log.read_bytes()[:_MESSAGE_BYTES]
        except OSError:
            written = b""
        if written:
            return written.decode(errors="replace")
        policy = self._setting.spec.get("terminationMessagePolicy")
        if policy == "FallbackToLogsOnError" and ending.exit_code != 0:
            return ending.output[-_LOG_MESSAGE_BYTES:]
        return ""

    def _remove_old_logs(self) -> None:
        """Keep this run's log and the one before it, as `kubectl logs --previous` reads no other."""
        self._setting.directory.mkdir(parents=True, exist_ok=True)
        kept = {str(self.record.restart_count), str(self.record.restart_count - 1)}
        for log in self._setting.directory.glob("*.log*"):
            if log.name.partition(".")[0] not in kept:
                log.unlink(missing_ok=True)
