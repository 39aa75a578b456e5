"""ClusterIP Services without a kernel's help: a userspace TCP proxy from each ClusterIP to the ready pods.

A ClusterIP of a local cluster is a loopback address, so the proxy listens on the address itself. There is no DNS, and
nothing listens on node ports or load balancers; Services that ask for more than is done get an event that says so.
"""

from graft_local.services.proxy import run

__all__ = ["run"]
