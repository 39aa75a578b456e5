"""What the conditions of a pool are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graft_runtime.contract.adapter_set import AdapterSetVersion
from graft_runtime.contract.status import BaseState, RuntimeStatus

from graft_operator.decisions.observed import Failure, Observed, PodReport, PodView, Rollout
from graft_operator.objects import Pool
from graft_operator.resource import AdapterStatus


@dataclass(frozen=True)
class Facts:
    """What the conditions are made from."""

    pool: Pool
    observed: Observed
    failure: Failure | None
    """Why the pool as a whole is not as its spec says; a person must look."""
    template_hash: str | None
    """Of the Deployment that the spec asks for; None where there can't be one."""
    versions: Mapping[str, AdapterSetVersion]
    """Config hash → the version that its pods are to serve."""
    current: str
    """The config hash whose adapter set follows the spec."""
    adapters: tuple[AdapterStatus, ...]
    pods: tuple[PodView, ...]
    """Those that the Deployment wants."""

    @property
    def rollout(self) -> Rollout | None:
        """Return how far the Deployment is; None where there is none."""
        return self.observed.rollout

    @property
    def deployed(self) -> bool:
        """Tell whether the Deployment is what the spec asks for."""
        return self.rollout is not None and self.rollout.template_hash == self.template_hash

    @property
    def rolled_out(self) -> bool:
        """Tell whether the Deployment is what the spec asks for, and all its pods are."""
        rollout = self.rollout
        return self.deployed and rollout is not None and rollout.settled and rollout.desired == self.pool.spec.replicas

    @property
    def ready_pods(self) -> tuple[PodView, ...]:
        """Return those of the pods that Kubernetes holds for Ready."""
        return tuple(pod for pod in self.pods if pod.ready)

    @property
    def merge_name(self) -> str | None:
        """Return the one name that a merged pool serves; None in hot mode."""
        merge = self.pool.spec.merge
        return None if merge is None else merge.name

    def report(self, pod: PodView) -> RuntimeStatus | None:
        """Return what a pod says of itself; None where nothing is known."""
        return self.observed.report(pod)

    def answer(self, pod: PodView) -> PodReport:
        """Return what asking the pod has come to."""
        return self.observed.reports.get(pod.uid, PodReport())

    def serves(self, pod: PodView) -> bool:
        """Tell whether the pod answers in the mode that the spec asks for: under the merge's name, or the base's."""
        status = self.report(pod)
        if status is None or not serves(status):
            return False
        return self.merge_name == (None if status.base.merge is None else status.base.merge.name)


def serves(status: RuntimeStatus | None) -> bool:
    """Tell whether the pod that reports this answers requests, in whichever mode."""
    return status is not None and status.base.state is BaseState.SERVING
